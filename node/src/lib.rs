<<<<<<< HEAD
//! The node: configuration, cores, planes, wiring and command line of the `stateside` binary.

pub mod core;
=======
//! The node: cores, planes, wiring and the command line, as a library behind the `stateside` binary.

pub mod reactor;
>>>>>>> reactor
