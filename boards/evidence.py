"""How a figure was obtained; every figure carries one of these words and reports never mix them."""

EVIDENCE = {
    "trained": "computed by the trained network itself, in software",
    "estimated": "computed by a model of the hardware",
    "simulated": "computed by compiled HLS C++ or a simulated board",
    "synthesised": "reported by HLS or logic synthesis",
    "implemented": "reported after place and route",
    "measured": "measured on a real board",
    "replayed": "recorded on a real board earlier",
}
