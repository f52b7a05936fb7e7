//! Windows to pprof bytes. The only module that knows pprof; pure and deterministic.
