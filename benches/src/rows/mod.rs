//! The rows of the comparison: what runs beside what, under which load, and which bar it has to
//! reach. Each row starts its servers anew, so that peak memory is the row's own.

mod batched;
mod cores;
mod durable;
mod idle;
mod memory;
mod open_loop;
mod partitions;
mod snapshot;
mod unary;

use std::path::Path;

use tokio::runtime::Runtime;

use crate::{comparison::Effort, outcome::Outcome};

/// What a row works with.
pub struct Context<'r> {
    /// How much to measure.
    pub effort: Effort,
    /// For files, on the same file system for all; removed at the end.
    pub folder: &'r Path,
    /// For calls that are not measured.
    pub runtime: &'r Runtime,
}

/// One row.
pub struct Row {
    /// For `--only`.
    pub name: &'static str,
    /// What it measures.
    pub title: &'static str,
    /// Takes minutes or gigabytes: runs when it is named, or with `--long`.
    pub long: bool,
    /// Measures it.
    pub run: fn(&Context<'_>) -> Result<Outcome, String>,
}

const fn row(
    name: &'static str,
    title: &'static str,
    run: fn(&Context<'_>) -> Result<Outcome, String>,
) -> Row {
    Row { name, title, long: false, run }
}

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    row("get-8x32", "Get of one record, 8 connections x 32 calls", unary::get_8x32),
    row("upsert-8x32", "Upsert of one pair, ack = memory, 8 x 32", unary::upsert_8x32),
    row("get-50x1", "Get, 50 connections x 1 call", unary::get_50x1),
    row("upsert-50x1", "Upsert, ack = memory, 50 x 1", unary::upsert_50x1),
    row("get-1x1", "Get, one call at a time", unary::get_1x1),
    row("upsert-1x1", "Upsert, ack = memory, one call at a time", unary::upsert_1x1),
    row("batch-upsert", "Upsert of 1,000 pairs, ack = memory, 2 x 2", batched::upsert),
    row("batch-get", "Get of 1,000 records, 2 x 2", batched::get),
    row("durable-8x32", "Upsert, on disk before the answer, 8 x 32", durable::many_streams),
    row("durable-50x1", "Upsert, on disk before the answer, 50 x 1", durable::many_connections),
    row("durable-1x1", "Upsert, on disk before the answer, one at a time", durable::one),
    row("routing", "Get on two cores: routing and non-routing clients", cores::routing),
    row("partitions-1000", "1,000 partitions beside 8, one core", partitions::thousand),
    row("snapshot", "Snapshots under half the full load", snapshot::under_load),
    row("open-loop-get", "Get, calls that do not wait, at half of the peak", open_loop::get),
    row("open-loop-upsert", "Upsert, calls that do not wait, half of the peak", open_loop::upsert),
    row("idle", "A node without work", idle::idle),
    Row {
        name: "memory-10m",
        title: "Memory of 10,000,000 records",
        long: true,
        run: memory::ten_million,
    },
];

/// The rows of these names, in the order of the table; without names all that are not long.
///
/// # Errors
/// There is no row of that name.
pub fn pick(names: &[String], long: bool) -> Result<Vec<&'static Row>, String> {
    for name in names {
        if !ROWS.iter().any(|row| row.name == name) {
            return Err(format!("there is no row `{name}`; --list names them"));
        }
    }
    let named = |row: &&Row| names.iter().any(|name| name == row.name);
    Ok(ROWS
        .iter()
        .filter(|row| if names.is_empty() { long || !row.long } else { named(row) })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_pick_rows_and_a_wrong_one_is_no_row() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let picked = pick(&names(&["idle", "get-8x32", "memory-10m"]), false).unwrap();
        let picked: Vec<&str> = picked.iter().map(|row| row.name).collect();
        assert_eq!(picked, ["get-8x32", "idle", "memory-10m"]);
        assert!(pick(&names(&["get"]), false).is_err());
        assert_eq!(pick(&[], true).unwrap().len(), ROWS.len());
        assert!(pick(&[], false).unwrap().iter().all(|row| !row.long));
    }
}
