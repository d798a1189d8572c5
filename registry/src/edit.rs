//! Changes a registry file's text and leaves alone what it does not change: comments, order,
//! spacing, ways of writing.

use stateside_types::{DesiredPartition, DesiredSet, PartitionId, StoreKind};
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::{Edit, parse::parse, pipeline_toml::write_pipeline};

/// The text after the edit, and the set that it declares.
///
/// # Errors
/// Why the edit does not fit, in words. The text itself must be one that [`parse()`] accepts.
pub(crate) fn edit(text: &str, edit: &Edit) -> Result<(String, DesiredSet), String> {
    let mut document: DocumentMut = text.parse().map_err(|_| "the file is not TOML".to_owned())?;
    match edit {
        Edit::Add(partition) => {
            // Declaring it anew ends an old confirmation that its records may go.
            remove(&mut document, "removed", partition.id);
            add(&mut document, partition);
        }
        Edit::Remove(id) => {
            if !remove(&mut document, "partition", *id) {
                return Err(undeclared(*id));
            }
        }
        Edit::SetStore(id, store) => {
            let table = find(&mut document, *id).ok_or_else(|| undeclared(*id))?;
            set_store(table, *store);
        }
    }
    let text = document.to_string();
    let set = parse(&text).map_err(|(_, message)| message)?;
    Ok((text, set))
}

/// A new registry file.
pub(crate) fn new_file(set: &DesiredSet) -> String {
    let mut text = String::from(
        "# The partitions of this node. Edit this file while the node runs: a change takes effect\n\
         # within seconds, `stateside status` shows what it waits for. `stateside partition add` and\n\
         # `remove` edit it too. Keys: id, range = \"START..END\" (END 0: through the last hash), and\n\
         # optionally store, ack, pipeline.\n",
    );
    for partition in set.partitions() {
        let mut document = DocumentMut::new();
        add(&mut document, partition);
        text.push('\n');
        text.push_str(&document.to_string());
    }
    text
}

fn add(document: &mut DocumentMut, partition: &DesiredPartition) {
    let mut before = String::from("\n");
    if document.is_empty() {
        // A file of comments alone: they came first and stay first.
        before = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing("");
        if !before.is_empty() {
            before.push('\n');
        }
    }
    let item = document.entry("partition").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    if let Some(tables) = item.as_array_of_tables_mut() {
        let mut table = Table::new();
        fill(&mut table, partition);
        table.decor_mut().set_prefix(before);
        tables.push(table);
    } else if let Some(items) = item.as_array_mut() {
        let mut table = InlineTable::new();
        fill(&mut table, partition);
        items.push(table);
    }
}

fn fill(table: &mut dyn TableLike, partition: &DesiredPartition) {
    let mut set = |key: &str, value: Value| table.insert(key, Item::Value(value));
    set("id", i64::from(partition.id.0).into());
    set("range", partition.range.to_string().into());
    if let Some(store) = partition.store {
        set("store", store.as_str().into());
    }
    if let Some(ack) = partition.ack {
        set("ack", ack.as_str().into());
    }
    if let Some(pipeline) = &partition.pipeline {
        set("pipeline", write_pipeline(pipeline));
    }
}

/// Takes out the section of an id; says whether there was one.
fn remove(document: &mut DocumentMut, name: &str, id: PartitionId) -> bool {
    let is_it =
        |table: &dyn TableLike| table.get("id").and_then(Item::as_integer) == Some(i64::from(id.0));
    let text = document.to_string();
    let Some(item) = document.get_mut(name) else { return false };
    if let Some(items) = item.as_array_mut() {
        let at = items
            .iter()
            .position(|value| value.as_inline_table().is_some_and(|table| is_it(table)));
        return at.map(|at| items.remove(at)).is_some();
    }
    let Some(tables) = item.as_array_of_tables_mut() else { return false };
    let Some(at) = tables.iter().position(|table| is_it(table)) else { return false };
    let before = tables.get(at).map(comment_before).unwrap_or_default();
    tables.remove(at);
    // A comment goes with its section. What an empty line cuts off from the section is about the
    // file, or about the sections above, and so is what the file begins with: it stays.
    let kept = match before.rfind("\n\n") {
        Some(end) => &before[..=end],
        None if text.starts_with(&before) => &before,
        None => "",
    };
    if kept.trim().is_empty() {
        return true;
    }
    if let Some(next) = tables.get_mut(at) {
        let prefix = format!("{kept}{}", comment_before(next));
        next.decor_mut().set_prefix(prefix);
    } else {
        let trailing = format!("{kept}{}", document.trailing().as_str().unwrap_or_default());
        document.set_trailing(trailing);
    }
    true
}

fn undeclared(id: PartitionId) -> String {
    format!("the registry declares no partition {id}")
}

/// The section that declares a partition.
fn find(document: &mut DocumentMut, id: PartitionId) -> Option<&mut dyn TableLike> {
    let is_it =
        |table: &dyn TableLike| table.get("id").and_then(Item::as_integer) == Some(i64::from(id.0));
    match document.get_mut("partition")? {
        Item::ArrayOfTables(tables) => {
            tables.iter_mut().find(|table| is_it(*table)).map(|table| table as &mut dyn TableLike)
        }
        item => {
            let mut tables = item.as_array_mut()?.iter_mut().filter_map(Value::as_inline_table_mut);
            tables.find(|table| is_it(*table)).map(|table| table as &mut dyn TableLike)
        }
    }
}

/// Replaces the value alone, so that a comment behind it stays.
fn set_store(table: &mut dyn TableLike, store: Option<StoreKind>) {
    let Some(store) = store else {
        table.remove("store");
        return;
    };
    let mut value = Value::from(store.as_str());
    match table.get_mut("store") {
        Some(Item::Value(before)) => {
            *value.decor_mut() = before.decor().clone();
            *before = value;
        }
        _ => drop(table.insert("store", Item::Value(value))),
    }
}

fn comment_before(table: &Table) -> String {
    table.decor().prefix().and_then(toml_edit::RawString::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stateside_types::{Ack, HashRange, StageKind};

    use super::*;

    const FILE: &str = "\
# The fleet's vm-1. Ask ops before you touch this.

# the busy one
[[partition]]
id = 0   # never change
range = { start = 0, end = \"0x8000000000000000\" }

# the quiet one
[[partition]]
id = 1
range = \"0x8000000000000000..0xc000000000000000\"
ack = \"memory\"

[[removed]]
id = 9
# the end
";

    fn partition(id: u32, start: u64, end: u64) -> DesiredPartition {
        DesiredPartition::new(PartitionId(id), HashRange::new(start, end).unwrap())
    }

    #[test]
    fn an_addition_keeps_every_comment_and_way_of_writing() {
        let new = DesiredPartition {
            store: Some(StoreKind::Sled),
            ack: Some(Ack::Memory),
            pipeline: Some([StageKind::Clock, StageKind::Dispatcher].as_slice().into()),
            ..partition(7, 0xc << 60, 0)
        };
        let (text, set) = edit(FILE, &Edit::Add(new.clone())).unwrap();
        assert_eq!(set.get(PartitionId(7)), Some(&new));
        let added = "\n[[partition]]\nid = 7\nrange = \"0xc000000000000000..0x0000000000000000\"\nstore = \"sled\"\nack = \"memory\"\npipeline = [\"clock\", \"dispatcher\"]\n";
        assert!(text.contains(added), "{text}");
        assert_eq!(text.replacen(added, "", 1), FILE);
    }

    #[test]
    fn a_removal_takes_its_own_comment_along_and_leaves_the_others() {
        let (text, set) = edit(FILE, &Edit::Remove(PartitionId(0))).unwrap();
        assert_eq!(set.partitions().len(), 1);
        assert!(text.starts_with("# The fleet's vm-1. Ask ops before you touch this.\n"), "{text}");
        assert!(!text.contains("busy") && text.contains("quiet") && text.contains("# the end"));
        let (text, _) = edit(&text, &Edit::Remove(PartitionId(1))).unwrap();
        assert!(text.contains("Ask ops") && !text.contains("quiet"), "{text}");
        let (text, set) = edit(&text, &Edit::Add(partition(9, 0, 0))).unwrap();
        assert!(text.contains("Ask ops"), "{text}");
        assert!(!set.is_removal_confirmed(PartitionId(9)), "declared anew");
    }

    #[test]
    fn lists_of_inline_tables_are_edited_in_place() {
        let file = "partition = [\n  { id = 0, range = \"0..5\" }, # a\n]\n";
        let (text, set) = edit(file, &Edit::Add(partition(1, 5, 0))).unwrap();
        assert_eq!(set.partitions().len(), 2);
        let (_, set) = edit(&text, &Edit::Remove(PartitionId(0))).unwrap();
        assert_eq!(set.partitions().map(|one| one.id).collect::<Vec<_>>(), [PartitionId(1)]);
    }

    #[test]
    fn another_store_changes_nothing_but_that() {
        let file =
            FILE.replace("ack = \"memory\"\n", "ack = \"memory\"\nstore = \"sled\" # slow\n");
        let change = Edit::SetStore(PartitionId(1), Some(StoreKind::Lsm));
        let (text, set) = edit(&file, &change).unwrap();
        assert_eq!(text, file.replace("\"sled\" # slow", "\"lsm\" # slow"));
        assert_eq!(set.get(PartitionId(1)).unwrap().store, Some(StoreKind::Lsm));
        // Where none was declared it comes last, and goes again without a trace.
        let change = Edit::SetStore(PartitionId(0), Some(StoreKind::Lsm));
        let (text, set) = edit(FILE, &change).unwrap();
        assert_eq!(set.get(PartitionId(0)).unwrap().store, Some(StoreKind::Lsm));
        let (text, set) = edit(&text, &Edit::SetStore(PartitionId(0), None)).unwrap();
        assert_eq!((text.as_str(), set.get(PartitionId(0)).unwrap().store), (FILE, None));
        let inline = "partition = [\n  { id = 0, range = \"0..5\" }, # a\n]\n";
        let (text, _) = edit(inline, &change).unwrap();
        assert!(text.contains("store = \"lsm\"") && text.contains("# a"), "{text}");
        let nobody = Edit::SetStore(PartitionId(7), None);
        assert!(edit(FILE, &nobody).unwrap_err().contains("no partition 7"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let overlap = edit(FILE, &Edit::Add(partition(7, 5, 6))).unwrap_err();
        assert!(overlap.contains("overlaps"), "{overlap}");
        let twice = edit(FILE, &Edit::Add(partition(1, 0xc << 60, 0))).unwrap_err();
        assert!(twice.contains("declared twice"), "{twice}");
        let nobody = edit(FILE, &Edit::Remove(PartitionId(5))).unwrap_err();
        assert!(nobody.contains("no partition 5"), "{nobody}");
    }

    #[test]
    fn a_new_file_declares_its_set() {
        let set = DesiredSet::split_evenly(16);
        assert_eq!(parse(&new_file(&set)).unwrap(), set);
        let empty = new_file(&DesiredSet::default());
        let (text, set) = edit(&empty, &Edit::Add(partition(0, 0, 0))).unwrap();
        assert_eq!(set.partitions().len(), 1);
        assert!(text.starts_with("# The partitions of this node."), "{text}");
        let (text, _) = edit(&text, &Edit::Remove(PartitionId(0))).unwrap();
        assert!(text.starts_with("# The partitions of this node."), "{text}");
    }

    #[test]
    fn what_the_file_begins_with_stays() {
        let file = "# mine\n[[partition]]\nid = 1\nrange = \"0..\"\n";
        let (text, _) = edit(file, &Edit::Remove(PartitionId(1))).unwrap();
        assert_eq!(text, "# mine\n");
    }

    proptest! {
        #[test]
        fn additions_and_removals_do_what_a_map_would(
            steps in prop::collection::vec((0_u32..10, any::<bool>()), 0..30),
        ) {
            let mut text = FILE.replace("id = 0 ", "id = 20 ").replace("id = 1\n", "id = 21\n");
            let mut model: std::collections::BTreeSet<u32> = [20, 21].into();
            for (id, is_add) in steps {
                let start = (0xc << 60) + u64::from(id);
                let step = if is_add {
                    Edit::Add(partition(id, start, start + 1))
                } else {
                    Edit::Remove(PartitionId(id))
                };
                let fits = if is_add { model.insert(id) } else { model.remove(&id) };
                match edit(&text, &step) {
                    Ok((after, set)) => {
                        prop_assert!(fits);
                        prop_assert_eq!(set.partitions().map(|one| one.id.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                        text = after;
                    }
                    Err(_) => prop_assert!(!fits),
                }
                prop_assert!(text.contains("# The fleet's vm-1") && text.contains("# the quiet one"));
            }
        }
    }
}
