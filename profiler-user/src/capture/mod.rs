//! Kernel to record bytes: loads and attaches the BPF programs and drains their rings. The only
//! module that mentions aya.
