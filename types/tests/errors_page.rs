//! `docs/errors.md` is what the table of reasons says.
//! `UPDATE_DOCS=1 cargo test -p stateside-types --test errors_page` writes it anew.

use std::{fmt::Write, fs, path::Path};

use stateside_types::{Reason, Refusal};

#[test]
fn the_page_of_errors_matches_the_reasons() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).expect("docs/errors.md can be written");
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/errors.md is out of date: UPDATE_DOCS=1 cargo test -p stateside-types --test errors_page"
    );
}

fn page() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         A refused call changes nothing. Its gRPC status carries `google.rpc.ErrorInfo` with `domain` \
         \"stateside.dev\" and one of\n\
         the reasons below, which are stable; the message names the entry, limit or file and is for people. Where a retry\n\
         of the same request makes sense, `google.rpc.RetryInfo` says after how long.\n\n\
         When the entries of a batch fall into several partitions the call answers OK, and what was refused says so in its\n\
         own result: the same code, reason, message and delay.\n\n\
         `BAD_NODE` names no owner. A node knows its own partitions, and its registry declares no other node's: a client\n\
         that uses several nodes asks each of them for its `Topology`.\n\n\
         | reason | code | retry after | what to do |\n|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let delay = Refusal::new(*reason, "").retry_after_ms;
        let delay = delay.map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"));
        writeln!(
            page,
            "| `{}` | {:?} | {delay} | {} |",
            reason.as_str(),
            reason.code(),
            reason.advice()
        )
        .expect("a string grows as needed");
    }
    page
}
