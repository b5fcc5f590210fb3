// The translation unit that nvrtc.py compiles, for one dtype at a time.

#include "channels_last.cuh"
#include "features_backward.cuh"
#include "strided.cuh"
