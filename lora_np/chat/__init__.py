"""Talk to a language model: a conversation that streams, adapters to switch, and the commands."""

from lora_np.chat.conversation import Conversation, Drawing
from lora_np.chat.recall import Recall
from lora_np.chat.session import Session
from lora_np.chat.shelf import Shelf

__all__ = ["Conversation", "Drawing", "Recall", "Session", "Shelf"]
