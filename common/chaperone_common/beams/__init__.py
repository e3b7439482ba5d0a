"""Beams across the link: dynamic-width speculative beam decoding (DSBD).

Source: Qin et al., "Dynamic-Width Speculative Beam Decoding for Efficient LLM Inference", arXiv 2409.16560. The paper's
names are used: W_L is the number of beams of the large model, W_S that of the small one, gamma the depth of a forest.
"""
