//! Lane: the timers of the apiserver.
