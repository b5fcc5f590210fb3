// What NVRTC compiles: one instance of one kernel at a time, by name (nvrtc.py).

#ifndef V_FWD_CL_AT
#define V_FWD_CL_AT 4
#endif
#ifndef V_FWD_CL1_AT
#define V_FWD_CL1_AT 8
#endif
#ifndef V_FWD_CL_R
#define V_FWD_CL_R 2
#endif
#ifndef V_RB_CL_R
#define V_RB_CL_R 4
#endif
#ifndef V_FWD_ST_R
#define V_FWD_ST_R 4
#endif
#ifndef V_RB_ST_R
#define V_RB_ST_R 4
#endif
#ifndef V_FB_A
#define V_FB_A 2
#endif
#ifndef V_FB
#define V_FB ,3
#endif
#ifndef V_FB_ORDER
#define V_FB_ORDER blockIdx.x
#endif
#ifndef V_FWD_CL
#define V_FWD_CL
#endif
#ifndef V_FWD_ST
#define V_FWD_ST
#endif
#ifndef V_RB_CL
#define V_RB_CL
#endif
#ifndef V_RB_ST
#define V_RB_ST
#endif
#include "channels_last.cuh"
#include "features_backward.cuh"
#include "strided.cuh"
