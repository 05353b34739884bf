// Stands in for Vitis HLS' header of the same name in C simulation only: the members our wrapper uses, no more.
#ifndef SLIMGATE_AP_AXI_SDATA_H_
#define SLIMGATE_AP_AXI_SDATA_H_

#include "ap_int.h"

template <int DATA_BITS, int USER_BITS, int ID_BITS, int DEST_BITS> struct ap_axiu {
    ap_uint<DATA_BITS> data;
    ap_uint<DATA_BITS / 8> keep, strb;
    ap_uint<1> last;
};

#endif
