//! Encoded profiles to where they are wanted, or why not. The only module that opens client sockets.
