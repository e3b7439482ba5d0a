"""The pure cost model of drafting, link and cloud: what a pair of models can gain over plain streaming."""
