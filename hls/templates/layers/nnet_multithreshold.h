// A monotone function of each channel as the number of thresholds its value reaches: code = base + step * count.
#ifndef NNET_MULTITHRESHOLD_H_
#define NNET_MULTITHRESHOLD_H_

#include "hls_stream.h"
#include "nnet_common.h"

namespace nnet {

struct multithreshold_config {};

template <class data_T, class res_T, typename CONFIG_T>
void multithreshold(hls::stream<data_T> &data, hls::stream<res_T> &res,
                    typename CONFIG_T::thresholds_t thresholds[CONFIG_T::n_chan * CONFIG_T::n_steps]) {
    #pragma HLS ARRAY_PARTITION variable=thresholds complete

Pixels:
    for (unsigned i = 0; i < CONFIG_T::n_in / CONFIG_T::n_chan; i++) {
        #pragma HLS PIPELINE
        const data_T token = data.read();
        res_T levels;
    Channels:
        for (unsigned c = 0; c < CONFIG_T::n_chan; c++) {
            #pragma HLS UNROLL
            int code = CONFIG_T::base;
        Steps:
            for (unsigned s = 0; s < CONFIG_T::n_steps; s++) {
                #pragma HLS UNROLL
                code += token[c] >= thresholds[c * CONFIG_T::n_steps + s] ? int(CONFIG_T::step) : 0;
            }
            const ap_int<32> wide = code;
            const int width = res_T::value_type::width;
            levels[c].range(width - 1, 0) = wide.range(width - 1, 0);
        }
        res.write(levels);
    }
}

} // namespace nnet

#endif
