//! The policy `chinese_wall`: who has been let into the affairs of one party may not look into those of its competitor.
//!
//! Paths of competitors form a class of conflict. The first member whose subtree a domain touches (reads, lists, watches or changes
//! anything at or below it) is the one that it has chosen, for its life; every access to another member of that class is refused, and it
//! hears of no change there. The choice is a node, `/tool/xenstored/chinese-wall/CLASS/DOMID`, and goes when the domain ends.
//! The privileged domain is not bound: it manages all of them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Access, Passed, Policy};
use crate::extension::{Item, Keep, Why, node_path};
use crate::ids::DomId;
use crate::path::{Path, PathRef};
use crate::wire::Errno;

/// Where choices are kept.
const FOLDER: &str = "/tool/xenstored/chinese-wall";
/// Classes, and members of each, that there can be.
const COUNT_MAX: usize = 64;

/// The classes.
#[derive(Debug)]
pub(super) struct ChineseWall {
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Class {
    name: String,
    members: Vec<Path>,
}

impl ChineseWall {
    pub(super) fn make(item: &Item<'_>) -> Result<Box<dyn Policy>, Why> {
        let wrong = "it takes classes, such as chinese_wall:banks=/data/a+/data/b";
        let mut classes: Vec<Class> = Vec::new();
        for (name, members) in item.parameters() {
            let name = name.filter(|name| is_name(name)).ok_or(wrong)?;
            let members = members.split('+').map(node_path);
            let members = members.collect::<Result<Vec<_>, _>>()?;
            check_members(&members)?;
            if classes.iter().any(|class| class.name == name) {
                return Err("a class is there twice");
            }
            let name = name.to_string();
            classes.push(Class { name, members });
        }
        if classes.is_empty() || classes.len() > COUNT_MAX {
            return Err(wrong);
        }
        Ok(Box::new(Self { classes }))
    }

    /// The classes to which a path belongs, each with the member of it.
    fn touched<'s>(&'s self, path: PathRef<'_>) -> impl Iterator<Item = (&'s Class, &'s Path)> {
        let member = move |class: &'s Class| {
            let mut members = class.members.iter();
            let member = members.find(|member| path.lies_in(member.as_ref()))?;
            Some((class, member))
        };
        self.classes.iter().filter_map(member)
    }
}

impl Policy for ChineseWall {
    fn name(&self) -> &'static str {
        "chinese_wall"
    }

    fn check(&self, access: &Access<'_>) -> Result<(), Errno> {
        if access.is_privileged() {
            return Ok(());
        }
        let is_kept_out = |(class, member): (&Class, &Path)| {
            let choice = access.store().value(&class.node(access.domid()));
            choice.is_some_and(|choice| choice != member.as_str().as_bytes())
        };
        if self.touched(access.path()).any(is_kept_out) || self.contains_another(access) {
            Err(Errno::EACCES)
        } else {
            Ok(())
        }
    }

    fn passed(&mut self, passed: &Passed, keep: &mut dyn Keep) {
        if passed.is_privileged {
            return;
        }
        for (class, member) in self.touched(passed.path.as_ref()) {
            let node = class.node(passed.domid);
            if keep.view().value(&node).is_none() {
                keep.write(&node, member.as_str().as_bytes());
            }
        }
    }
}

/// Forgets what a domain has chosen in any class, those that were set earlier included.
pub(super) fn forget(domid: DomId, keep: &mut dyn Keep) {
    let mut classes = Vec::new();
    keep.view().children(FOLDER, &mut |class| {
        classes.push(class.to_string());
        true
    });
    for class in classes {
        keep.remove(&format!("{FOLDER}/{class}/{domid}"));
    }
}

impl ChineseWall {
    /// Whether a tree is to be removed in which a member lies: what is above all members is nobody's to remove but the privileged domain's.
    fn contains_another(&self, access: &Access<'_>) -> bool {
        let mut members = self.classes.iter().flat_map(|class| &class.members);
        let is_inside = |member: &Path| {
            let member = member.as_ref();
            member != access.path() && member.lies_in(access.path())
        };
        access.operation() == super::Operation::Remove && members.any(is_inside)
    }
}

impl Class {
    fn node(&self, domid: DomId) -> String {
        format!("{FOLDER}/{}/{domid}", self.name)
    }
}

fn check_members(members: &[Path]) -> Result<(), Why> {
    if !(2..=COUNT_MAX).contains(&members.len()) {
        return Err("a class has 2 to 64 members, parted by +");
    }
    for (place, member) in members.iter().enumerate() {
        let mut others = members.iter().take(place);
        let overlaps = |other: &Path| {
            let (one, other) = (member.as_ref(), other.as_ref());
            one.lies_in(other) || other.lies_in(one)
        };
        if others.any(overlaps) {
            return Err("a member of a class lies in another one");
        }
    }
    Ok(())
}

/// Whether this can be the name of a node.
fn is_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !name.is_empty() && name.bytes().all(is_good)
}
