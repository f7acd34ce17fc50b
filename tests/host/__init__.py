"""What the tests named test_host_* need: a ComfyUI in this process, one in its own, a browser."""
