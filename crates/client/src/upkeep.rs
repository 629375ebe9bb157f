//! What is done to all images of a pool: verifying them, and giving back the space that none needs.

use marcot::{CheckOptions, CheckReport, GcReport, ImageName, Namespace, Result};

use crate::operation::Operation;
use crate::pool::Pool;
use crate::retry::Holders;

impl Pool {
    /// Verifies the pool, while images are in use. To repair, images that somebody only keeps open are
    /// closed first. `progress` gets bytes (done, total), between two reads, and may take its time.
    ///
    /// # Errors
    /// `Interrupted`; what keeps the check from going on. Damage is no error, but a finding.
    pub fn check(
        &self,
        options: &CheckOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport> {
        self.operate(Operation::CheckPool, || {
            if options.repair {
                match self.let_all_idle_go() {
                    // The check tells what it was.
                    Err(error) if error.kind().is_obstacle() && !self.client().interrupted() => {}
                    gone => gone?,
                }
            }
            self.client().store().check(self.engine(), options, progress)
        })
    }

    /// Gives back the space that no image or snapshot needs; images that were never whole are removed,
    /// and those that somebody only keeps open are closed first. `progress` gets (done, total).
    ///
    /// # Errors
    /// `Busy`, `ReadOnly`, `Corrupt`; `Interrupted`; what the operating system says.
    pub fn collect_garbage(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
        self.operate(Operation::CollectGarbage, || {
            self.remove_all_remains();
            self.let_all_idle_go()?;
            self.client().store().gc(self.engine(), progress)
        })
    }

    /// Has every image and snapshot of the pool closed that somebody only keeps open.
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
