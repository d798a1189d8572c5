//! The control thread: everything of the node that is not on the path of a request.
