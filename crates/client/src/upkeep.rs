//! Operations on all images of a pool: verifying them, and freeing the space that none needs.

use marcot::{CheckOptions, CheckReport, GcReport, ImageId, ImageName, Keep, Namespace, Result};

use crate::operation::Operation;
use crate::pool::Pool;
use crate::retry::Holders;

impl Pool {
    /// Verifies the pool. Images may be in use meanwhile. For a repair, images that a process keeps open
    /// without using them are closed first. `progress` gets bytes (done, total). It is called between two
    /// reads, and may block.
    ///
    /// # Errors
    /// `Interrupted`; errors that keep the check from going on. Damage is no error, but a finding.
    pub fn check(
        &self,
        options: &CheckOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport> {
        self.operate(Operation::CheckPool, || {
            if options.repair {
                match self.let_all_idle_go() {
                    // The check reports the same problem.
                    Err(error) if error.kind().is_obstacle() && !self.client().interrupted() => {}
                    gone => gone?,
                }
            }
            self.client().store().check(self.engine(), options, progress)
        })
    }

    /// Frees the space that no image or snapshot needs. Incomplete images are removed.
    /// Images that a process keeps open without using them are closed first. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Busy`, `ReadOnly`, `Corrupt`; `Interrupted`; errors of the operating system.
    pub fn collect_garbage(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
        self.collect_garbage_keeping(Keep::Interrupted, progress)
    }

    /// As [`Self::collect_garbage`]; `keep` says which images stay that an interrupted copy or import has left.
    ///
    /// # Errors
    /// As [`Self::collect_garbage`].
    pub fn collect_garbage_keeping(
        &self,
        keep: Keep<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<GcReport> {
        self.operate(Operation::CollectGarbage, || {
            self.remove_all_remains(keep);
            self.let_all_idle_go()?;
            self.client().store().gc(self.engine(), progress)
        })
    }

    /// See [`marcot::Pool::take_back`].
    ///
    /// # Errors
    /// As there.
    pub fn take_back(&self, image: ImageId) -> Result<()> {
        self.operate(Operation::CollectGarbage, || self.engine().take_back(image))
    }

    /// Asks processes to close every image and snapshot of the pool that they keep open without using it.
    fn let_all_idle_go(&self) -> Result<()> {
        let namespaces = self.engine().namespaces()?.into_iter().map(Namespace::named);
        for namespace in namespaces.chain([Namespace::DEFAULT]) {
            for (name, id) in self.engine().images(&namespace)? {
                let image = self.known_image(ImageName::new(name).in_namespace(&namespace), id);
                for holders in [Holders::Owner, Holders::Readers] {
                    image.ask_to_give_way(holders)?;
                }
            }
        }
        Ok(())
    }
}
