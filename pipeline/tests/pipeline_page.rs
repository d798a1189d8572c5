//! The tables of options in `docs/pipeline.md` are what the stages' definitions say.
//! `UPDATE_DOCS=1 cargo test -p stateside-pipeline --test pipeline_page` writes them anew.

use std::{fmt::Write, fs, path::Path};

use stateside_pipeline::definitions;

const BEGIN: &str = "<!-- stages: made from the code, see the end of the page -->\n";
const END: &str = "<!-- end of what is made from the code -->\n";

#[test]
fn the_tables_of_options_match_the_definitions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.md");
    let page = fs::read_to_string(&path).expect("docs/pipeline.md is there");
    let (before, rest) = page.split_once(BEGIN).expect("the page says where the tables begin");
    let (_, after) = rest.split_once(END).expect("the page says where the tables end");
    let expected = format!("{before}{BEGIN}{}{END}{after}", tables());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).expect("docs/pipeline.md can be written");
        return;
    }
    assert!(
        page == expected,
        "docs/pipeline.md is out of date: UPDATE_DOCS=1 cargo test -p stateside-pipeline --test pipeline_page"
    );
}

fn tables() -> String {
    let mut out = String::new();
    for definition in definitions() {
        write!(out, "\n### {}\n\n{}\n", definition.kind, definition.doc).expect("strings grow");
        if definition.all_options().next().is_none() {
            out.push_str("\nIt takes no options.\n");
            continue;
        }
        out.push_str("\n| option | takes | default | meaning |\n|---|---|---|---|\n");
        for option in definition.all_options() {
            let (name, kind, default, doc) = (option.name, option.kind, option.default, option.doc);
            writeln!(out, "| `{name}` | {kind} | {default} | {doc} |").expect("strings grow");
        }
    }
    out.push('\n');
    out
}
