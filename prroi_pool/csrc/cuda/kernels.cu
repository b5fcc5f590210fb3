// What NVRTC compiles (nvrtc.py), for one dtype at a time.

#include "channels_last.cuh"
#include "features_backward.cuh"
#include "strided.cuh"
