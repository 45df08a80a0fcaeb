"""TCP of one stack (RFC 9293): wire format, connections, what paces them, and the ends that system calls use."""
