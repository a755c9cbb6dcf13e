"""``akbench``: time and error of each op beside torch and other libraries, as a share of what the machine can do."""
