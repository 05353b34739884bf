// As nnet_multithreshold.h, for so many thresholds that comparators cost more than time: a binary search in each
// channel's table, one bit of the count after the other.
#ifndef NNET_THRESHOLD_SEARCH_H_
#define NNET_THRESHOLD_SEARCH_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

struct threshold_search_config {};

template <class data_T, class res_T, typename CONFIG_T>
void threshold_search(hls::stream<data_T> &data, hls::stream<res_T> &res,
                      typename CONFIG_T::thresholds_t thresholds[CONFIG_T::n_chan * CONFIG_T::n_steps]) {
    const int channels = CONFIG_T::n_chan;
    // a table of two ports for each channel: two bits of the count per cycle
    #pragma HLS ARRAY_PARTITION variable=thresholds block factor=channels

Pixels:
    for (unsigned i = 0; i < CONFIG_T::n_in / CONFIG_T::n_chan; i++) {
        #pragma HLS PIPELINE
        const data_T token = data.read();
        res_T levels;
    Channels:
        for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
            #pragma HLS UNROLL
            int count = 0;
        Bits:
            for (int bit = CONFIG_T::n_bits - 1; bit >= 0; bit--) {
                #pragma HLS UNROLL
                const int next = count + (1 << bit);
                if (next <= CONFIG_T::n_steps && token[c] >= thresholds[c * CONFIG_T::n_steps + next - 1])
                    count = next;
            }
            const ap_int<32> wide = CONFIG_T::base + count * CONFIG_T::step;
            const int width = res_T::value_type::width;
            levels[c].range(width - 1, 0) = wide.range(width - 1, 0);
        }
        res.write(levels);
    }
}

} // namespace nnet

#endif
