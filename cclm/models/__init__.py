"""The network itself: plain torch, transformers and timm."""
