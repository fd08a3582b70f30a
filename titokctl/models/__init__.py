"""Networks: nn.Modules and pure tensor functions; no paths, no ranks."""
