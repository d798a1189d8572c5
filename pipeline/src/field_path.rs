//! Paths of fields in values: `/card/number`, or with numbers `/3/1`.
//!
//! The form is that of JSON Pointer (RFC 6901: `~1` stands for a slash in a name, `~0` for a
//! tilde), and one thing besides: `*` as a step stands for every member or element. Steps into an
//! array other than `*` are its positions, from 0. For protobuf each step is a field's number:
//! numbers are what a schema promises to keep, so none is needed here, and none can be out of
//! date.

use stateside_types::{StageSpec, limits::FIELD_PATHS_MAX};

use crate::{OptionDefinition, OptionError};

/// How values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Protobuf,
}

impl Format {
    pub(crate) const NAMES: &'static [&'static str] = &["json", "protobuf"];

    pub(crate) fn read(spec: &StageSpec) -> Self {
        match spec.text("format") {
            Some("protobuf") => Self::Protobuf,
            _ => Self::Json,
        }
    }
}

/// What to do with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Drop,
    Mask,
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Every member, every element.
    Any,
    /// A member's name; in an array the position of that number; in protobuf the field's number.
    Named(Box<str>, Option<u32>),
}

/// The fields that a stage acts upon, as a tree of steps: walked beside the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldTree {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    action: Option<Action>,
    steps: Vec<(Step, usize)>,
}

/// Where a walk through a value is: the nodes that the steps so far lead to, the end of a stack.
/// There is more than one only where a path has `*`.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    tree: &'a FieldTree,
    stack: Stack,
    /// Where the nodes of this depth begin in `stack`.
    begin: usize,
}

/// The nodes of a walk. Nearly every walk has few: those take no memory of their own.
#[derive(Debug, Default)]
struct Stack {
    few: [u16; 12],
    /// Those beyond.
    more: Vec<u16>,
    len: usize,
}

impl Stack {
    #[inline]
    fn push(&mut self, node: usize) {
        let node = node as u16; // at most FIELD_PATHS_MAX
        match self.few.get_mut(self.len) {
            Some(place) => *place = node,
            None => self.more.push(node),
        }
        self.len += 1;
    }

    #[inline]
    fn get(&self, at: usize) -> usize {
        let few = self.few.len();
        usize::from(if at < few { self.few[at] } else { self.more[at - few] })
    }

    #[inline]
    fn truncate(&mut self, len: usize) {
        self.len = len;
        if !self.more.is_empty() {
            self.more.truncate(len.saturating_sub(self.few.len()));
        }
    }
}

const _: () = assert!(FIELD_PATHS_MAX < u16::MAX as usize);

/// What a walk came from; to be handed back to [`Walk::leave`].
#[derive(Debug)]
pub(crate) struct Came(usize);

/// A step in a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name<'a> {
    /// A member of an object, in UTF-8.
    Member(&'a [u8]),
    /// An element of an array, or a field of a message.
    Number(u32),
}

impl<'a> Walk<'a> {
    /// Stands before the first step.
    pub(crate) fn new(tree: &'a FieldTree) -> Self {
        let mut stack = Stack::default();
        if !tree.nodes.is_empty() {
            stack.push(0);
        }
        Self { tree, stack, begin: 0 }
    }

    /// Takes a step; what is to be done with what stands there.
    pub(crate) fn enter(&mut self, name: Name<'_>) -> (Option<Action>, Came) {
        let came = Came(self.begin);
        let end = self.stack.len;
        let mut action = None;
        for at in self.begin..end {
            for (step, next) in &self.tree.nodes[self.stack.get(at)].steps {
                if step.is(name) {
                    self.stack.push(*next);
                    match self.tree.nodes[*next].action {
                        Some(Action::Drop) => action = Some(Action::Drop),
                        Some(Action::Mask) if action.is_none() => action = Some(Action::Mask),
                        _ => {}
                    }
                }
            }
        }
        self.begin = end;
        (action, came)
    }

    /// Takes the step back.
    pub(crate) fn leave(&mut self, came: Came) {
        self.stack.truncate(self.begin);
        self.begin = came.0;
    }

    /// Whether any path goes on from here.
    pub(crate) fn goes_on(&self) -> bool {
        let mut nodes = (self.begin..self.stack.len).map(|at| self.stack.get(at));
        nodes.any(|node| !self.tree.nodes[node].steps.is_empty())
    }
}

impl Step {
    fn is(&self, name: Name<'_>) -> bool {
        match (self, name) {
            (Self::Any, _) => true,
            (Self::Named(have, _), Name::Member(name)) => have.as_bytes() == name,
            (Self::Named(_, have), Name::Number(number)) => *have == Some(number),
        }
    }
}

impl FieldTree {
    /// No fields.
    pub(crate) const NOTHING: Self = Self { nodes: Vec::new() };

    /// Adds the paths of an option.
    ///
    /// # Errors
    /// A path is none.
    pub(crate) fn add(
        &mut self,
        spec: &StageSpec,
        option: &OptionDefinition,
        format: Format,
        action: Action,
    ) -> Result<(), OptionError> {
        for path in spec.texts(option.name) {
            self.add_path(path, format, action).map_err(|message| option.wrong(message))?;
        }
        Ok(())
    }

    /// Adds a path.
    ///
    /// # Errors
    /// It is none, in words.
    pub(crate) fn add_path(
        &mut self,
        path: &str,
        format: Format,
        action: Action,
    ) -> Result<(), String> {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let Some(steps) = path.strip_prefix('/') else {
            return Err(format!("`{path}` is no path: it begins with a slash, like /card/number"));
        };
        let mut at = 0;
        for step in steps.split('/') {
            let step = parse_step(step, format).ok_or_else(|| match format {
                Format::Json => format!("`{path}`: ~ is followed by 0 or 1 in a path"),
                Format::Protobuf => {
                    format!("`{path}`: a step is the number of a field, 1 to 536870911, or *")
                }
            })?;
            at = match self.nodes[at].steps.iter().find(|(have, _)| *have == step) {
                Some((_, next)) => *next,
                None if self.nodes.len() > FIELD_PATHS_MAX => {
                    return Err(format!("the paths have more than {FIELD_PATHS_MAX} steps"));
                }
                None => {
                    let next = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[at].steps.push((step, next));
                    next
                }
            };
        }
        // Of two orders about one field the stricter holds.
        let have = self.nodes[at].action;
        self.nodes[at].action = if have == Some(Action::Drop) { have } else { Some(action) };
        Ok(())
    }
}

fn parse_step(text: &str, format: Format) -> Option<Step> {
    if text == "*" {
        return Some(Step::Any);
    }
    // As they are written: `+1` and `01` are names.
    let number = text.parse().ok().filter(|number: &u32| number.to_string() == text);
    if format == Format::Protobuf {
        let number = number.filter(|number| (1..1 << 29).contains(number))?;
        return Some(Step::Named(text.into(), Some(number)));
    }
    let mut name = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        name.push(match character {
            '~' => match characters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(Step::Named(name.into(), number))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tree(drop: &[&str], mask: &[&str], format: Format) -> FieldTree {
        let mut tree = FieldTree::default();
        for (paths, action) in [(drop, Action::Drop), (mask, Action::Mask)] {
            paths.iter().for_each(|path| tree.add_path(path, format, action).unwrap());
        }
        tree
    }

    #[test]
    fn paths_are_pointers_or_numbers() {
        for (path, format, says) in [
            ("card", Format::Json, "begins with a slash"),
            ("/a~2", Format::Json, "~ is followed by"),
            ("/3/x", Format::Protobuf, "the number of a field"),
            ("/0", Format::Protobuf, "the number of a field"),
            ("/536870912", Format::Protobuf, "1 to 536870911"),
            ("/01", Format::Protobuf, "the number of a field"),
        ] {
            let mut tree = FieldTree::default();
            let error = tree.add_path(path, format, Action::Drop).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let mut tree = FieldTree::default();
        let long = "/a".repeat(FIELD_PATHS_MAX + 2);
        assert!(
            tree.add_path(&long, Format::Json, Action::Drop).unwrap_err().contains("more than")
        );
    }

    #[test]
    fn of_two_orders_the_stricter_holds_and_a_walk_comes_back() {
        let tree = tree(&["/a/*/x"], &["/*/1/x", "/a/y"], Format::Json);
        let mut walk = Walk::new(&tree);
        let (action, came_a) = walk.enter(Name::Member(b"a"));
        assert!(action.is_none() && walk.goes_on());
        let (_, came_1) = walk.enter(Name::Number(1));
        let (action, came_x) = walk.enter(Name::Member(b"x"));
        assert!(action == Some(Action::Drop) && !walk.goes_on());
        walk.leave(came_x);
        walk.leave(came_1);
        let (action, came_y) = walk.enter(Name::Member(b"y"));
        assert_eq!(action, Some(Action::Mask));
        walk.leave(came_y);
        walk.leave(came_a);
        let (action, _) = walk.enter(Name::Member(b"b"));
        assert!(action.is_none() && walk.goes_on());
    }
}
