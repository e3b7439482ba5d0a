"""Adaptive computation: one network in which a token takes a big feed-forward network, a small one, or none.

Source: Alizadeh et al. 2024, "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
arXiv 2410.10846. Every layer has two feed-forward networks (FFN) and shares its attention.
"""
