// The largest value of each channel over a whole picture, one pixel each cycle. hls4ml's pooling would keep the whole
// picture in registers and compare all of it at once.
#ifndef NNET_WHOLE_MAX_H_
#define NNET_WHOLE_MAX_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

struct whole_max_config {};

template <class data_T, class res_T, typename CONFIG_T>
void whole_max(hls::stream<data_T> &data, hls::stream<res_T> &res) {
    data_T best;
    #pragma HLS ARRAY_PARTITION variable=best complete

Pixels:
    for (int pixel = 0; pixel < CONFIG_T::pixels; pixel++) {
        #pragma HLS PIPELINE II=1
        const data_T token = data.read();
    Channels:
        for (unsigned c = 0; c < data_T::size; c++) {
            #pragma HLS UNROLL
            best[c] = pixel == 0 || token[c] > best[c] ? token[c] : best[c];
        }
    }
    res_T result;
Results:
    for (unsigned c = 0; c < res_T::size; c++) {
        #pragma HLS UNROLL
        result[c] = best[c];
    }
    res.write(result);
}

} // namespace nnet

#endif
