//! The initial stores of races, and the commands that race.
//!
//! Every store has a pool `rbd` with an image `p` of 1 MiB, and an empty pool `o`. `C` stands for
//! the clone in the store; if the store has none, for a free name.

use crate::random::Random;

/// An initial store, as the commands that make it.
pub struct Variant {
    pub name: &'static str,
    /// The name that `C` stands for.
    pub child: &'static str,
    pub commands: &'static [&'static str],
}

/// Makes `p`; its content comes from a file.
pub const FIRST: &[&str] = &["pool create o", "import --no-progress DATA rbd/p"];

pub const VARIANTS: &[Variant] = &[
    Variant {
        name: "a protected snapshot without children",
        child: "rbd/c",
        commands: &["snap create --no-progress rbd/p@s", "snap protect rbd/p@s"],
    },
    Variant {
        name: "an unprotected snapshot",
        child: "rbd/c",
        commands: &["snap create --no-progress rbd/p@s"],
    },
    Variant {
        name: "a child of format 1",
        child: "rbd/c",
        commands: &[
            "snap create --no-progress rbd/p@s",
            "snap protect rbd/p@s",
            "clone rbd/p@s rbd/c",
            "write rbd/c",
            "snap create --no-progress rbd/c@t",
        ],
    },
    Variant {
        name: "a child of format 2",
        child: "rbd/c",
        commands: &[
            "snap create --no-progress rbd/p@s",
            "clone --rbd-default-clone-format 2 rbd/p@s rbd/c",
            "write rbd/c",
        ],
    },
    Variant {
        name: "a child of format 1 in another pool",
        child: "o/c",
        commands: &[
            "snap create --no-progress rbd/p@s",
            "snap protect rbd/p@s",
            "clone rbd/p@s o/c",
            "write o/c",
        ],
    },
    Variant {
        name: "a removed snapshot that a child of format 2 keeps",
        child: "rbd/c",
        commands: &[
            "snap create --no-progress rbd/p@s",
            "clone --rbd-default-clone-format 2 rbd/p@s rbd/c",
            "snap rm --no-progress rbd/p@s",
        ],
    },
    Variant {
        name: "a grandchild",
        child: "rbd/c",
        commands: &[
            "snap create --no-progress rbd/p@s",
            "snap protect rbd/p@s",
            "clone rbd/p@s rbd/c",
            "snap create --no-progress rbd/c@t",
            "snap protect rbd/c@t",
            "clone rbd/c@t o/g",
        ],
    },
    Variant { name: "no snapshot", child: "rbd/c", commands: &[] },
];

/// A command that races, and its forms.
pub struct Operation {
    pub name: &'static str,
    pub forms: &'static [&'static str],
}

/// The commands. `map` and `write` are no commands of the program: see [`crate::worker`].
pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "clone",
        forms: &[
            "clone rbd/p@s rbd/n",
            "clone rbd/p@s o/n",
            "clone --rbd-default-clone-format 2 rbd/p@s rbd/n",
            "clone --rbd-default-clone-format 2 rbd/p@s o/n",
        ],
    },
    Operation { name: "protect", forms: &["snap protect rbd/p@s", "snap protect C@t"] },
    Operation { name: "unprotect", forms: &["snap unprotect rbd/p@s", "snap unprotect C@t"] },
    Operation {
        name: "snap rm",
        forms: &["snap rm --no-progress rbd/p@s", "snap rm --no-progress C@t"],
    },
    Operation { name: "flatten", forms: &["flatten --no-progress C"] },
    Operation { name: "rm", forms: &["rm --no-progress C", "rm --no-progress rbd/p"] },
    Operation {
        name: "resize",
        forms: &[
            "resize --no-progress --size 2M C",
            "resize --no-progress --size 512K --allow-shrink C",
            "resize --no-progress --size 2M rbd/p",
            "resize --no-progress --size 512K --allow-shrink rbd/p",
        ],
    },
    Operation {
        name: "rename",
        forms: &["rename C C2", "rename rbd/p rbd/p2", "rename rbd/p rbd/n"],
    },
    Operation { name: "gc", forms: &["gc --no-progress rbd", "gc --no-progress o"] },
    Operation { name: "map", forms: &["map C", "map rbd/p", "map rbd/p@s"] },
];

/// Two commands and the initial store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    pub variant: usize,
    pub operations: [usize; 2],
    pub lines: [String; 2],
}

/// All unordered pairs of operations, including pairs of an operation with itself.
pub fn pairs_of_operations() -> Vec<[usize; 2]> {
    let count = OPERATIONS.len();
    (0..count).flat_map(|a| (a..count).map(move |b| [a, b])).collect()
}

impl Pair {
    /// A pair for race `index`: the operations in turn, the rest at random.
    pub fn draw(index: u64, random: &mut Random) -> Self {
        let pairs = pairs_of_operations();
        let operations = pairs[(index % pairs.len() as u64) as usize];
        let variant = random.below(VARIANTS.len() as u64) as usize;
        let child = VARIANTS[variant].child;
        let lines = operations.map(|o| random.pick(OPERATIONS[o].forms).replace('C', child));
        Self { variant, operations, lines }
    }

    /// The name of the pair in reports.
    pub fn names(&self) -> String {
        let [a, b] = self.operations.map(|o| OPERATIONS[o].name);
        format!("{a} | {b}")
    }
}
