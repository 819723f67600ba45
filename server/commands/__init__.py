"""Commands on what runs leave, and on what guarantees cost."""
