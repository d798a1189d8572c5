//! All end-to-end tests in one program: linked once, and run side by side. A filter on a module's
//! name runs a subject, as in `cargo xtask e2e damage`.

mod clients;
mod damage;
mod full_disk;
mod hostile_peers;
mod kill_loops;
mod lifecycle;
mod malformed_requests;
mod partitions;
mod quick_start;
mod startup;
