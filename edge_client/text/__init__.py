"""Between text and tokens: tokenizer, chat template, streamed text, stop strings."""

from edge_client.text.chat_template import ChatTemplate
from edge_client.text.detokenizer import DetokenizerStream
from edge_client.text.prompt import PromptReader, chat_tokens
from edge_client.text.stop_strings import StopScanner
from edge_client.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "DetokenizerStream", "PromptReader", "StopScanner", "Tokenizer", "chat_tokens"]
