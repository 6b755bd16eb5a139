"""Where messages enter and leave: kernel sockets, or ports of the native engine. See ``base`` for the contract."""
