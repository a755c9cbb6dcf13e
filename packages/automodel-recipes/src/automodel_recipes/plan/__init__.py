"""What a configuration will need, found out without a GPU, without weights and without other ranks."""
