// What NVRTC compiles: one instance of one kernel at a time, by name (nvrtc.py).

#include "channels_last.cuh"
#include "strided.cuh"
