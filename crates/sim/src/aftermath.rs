//! The time after an operation that failed or was interrupted: finds out which of the states that the oracle
//! allows is the true one, and goes on from there.

use std::collections::BTreeMap;

use marcot::{Error, ErrorKind};

use crate::crash;
use crate::damage;
use crate::disk::Cut;
use crate::model::Model;
use crate::observe;
use crate::operations::{Operation, Profile};
use crate::rules::{PROCESSES, Rule, Violation, violation};
use crate::runner::Runner;

impl Runner {
    pub(crate) fn tolerate(&self, error: &Error, what: &str) -> Result<(), Violation> {
        match self.may_fail(error.kind()) {
            true => Ok(()),
            false => violation(Rule::Model, format!("{what}: {}", error.sentence())),
        }
    }

    /// True for kinds of errors that the armed faults explain.
    fn may_fail(&self, kind: ErrorKind) -> bool {
        self.machine.faults_hit() > 0
            && match self.settings.profile {
                Profile::Crashes => false,
                Profile::Space => kind == ErrorKind::NoSpace,
                Profile::Errors => {
                    matches!(kind, ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::Corrupt)
                }
                Profile::Damage => true,
            }
    }

    pub(crate) fn after_error(
        &mut self,
        operation: &Operation,
        error: &Error,
    ) -> Result<bool, Violation> {
        if !self.may_fail(error.kind()) {
            return violation(
                Rule::Model,
                format!("{operation}: {} ({:?})", error.sentence(), error.kind()),
            );
        }
        if error.kind() == ErrorKind::Poisoned {
            self.must_stay_poisoned(operation)?;
        }
        if self.settings.profile == Profile::Damage {
            self.model.images = BTreeMap::new();
            self.damaged(self.expected.clone())?;
            return Ok(false);
        }
        self.machine.disarm();
        if self.settings.profile == Profile::Errors {
            // The failed operation may have lost something. Start again, as an operator would.
            self.drop_all();
        }
        let lost = self.settings.profile == Profile::Errors;
        let sync = self.settings.profile != Profile::Space;
        self.settle(self.expected.clone(), lost, sync).map_err(|v| Violation {
            message: format!("after {operation}: {}: {}", error.sentence(), v.message),
            ..v
        })?;
        Ok(true)
    }

    /// An image whose sync failed must promise nothing until it is opened again.
    fn must_stay_poisoned(&mut self, operation: &Operation) -> Result<(), Violation> {
        self.machine.set_probe(None);
        self.machine.disarm();
        let Some(slot) = operation.slot() else { return Ok(()) };
        let home = self.home(slot);
        match self.processes[home].images.get_mut(&slot).map(|image| image.flush()) {
            Some(Ok(())) => violation(Rule::I1, "a flush after a failed one promises what is lost"),
            _ => Ok(()),
        }
    }

    fn drop_all(&mut self) {
        for process in &mut self.processes {
            process.images.clear();
            process.store = None;
        }
    }

    pub(crate) fn after_cut(&mut self, cut: Cut) -> Result<(), Violation> {
        self.machine.set_probe(None);
        self.machine.disarm();
        self.outcome.crashes += 1;
        match cut {
            Cut::Power => {
                self.drop_all();
                self.machine.power_on();
            }
            Cut::Kill(process) => {
                self.processes[process].images.clear();
                self.processes[process].store = None;
            }
        }
        self.settle(self.expected.clone(), cut == Cut::Power, true)
            .map_err(|v| Violation { message: format!("after {cut:?}: {}", v.message), ..v })
    }

    /// Finds out which candidate is true, and goes on from there. `lost`: data that was not flushed may
    /// be gone. `sync`: time passes until everything is durable.
    fn settle(
        &mut self,
        mut candidates: Vec<Model>,
        lost: bool,
        sync: bool,
    ) -> Result<(), Violation> {
        self.machine.set_probe(None);
        if !lost {
            crash::keep_acknowledged(&mut candidates, &self.model);
        }
        let store = self.store(0).map_err(|e| Violation {
            rule: Rule::I1,
            message: format!("opening the store: {}", e.sentence()),
        })?;
        if self.settings.profile == Profile::Errors {
            // A reader sees the page cache. Data lost in a failed sync shows only when an owner opens.
            observe::open_owners(&store)?;
        }
        observe::check(&store, false)?;
        observe::collect(&store)?;
        let seen = observe::look(&store)?;
        let model = observe::settle(&candidates, &seen)?;
        let before = std::mem::replace(&mut self.model, model);
        if sync {
            self.machine.sync_all();
        } else {
            // Until a flush, earlier states may be found, but not the failed operation.
            for (slot, image) in &mut self.model.images {
                let states = before.images.get(slot).map_or(&[][..], |image| &image.history);
                image.history = states.iter().chain(&image.history).cloned().collect();
            }
        }
        self.take_marks_back()
    }

    /// Interrupted commands leave marks that refuse clones. Finishes these commands.
    fn take_marks_back(&mut self) -> Result<(), Violation> {
        for process in 0..PROCESSES {
            let images = std::mem::take(&mut self.processes[process].images);
            for (slot, mut image) in images {
                let _ = image.tidy();
                self.processes[process].images.insert(slot, image);
            }
        }
        let slots: Vec<u8> = self.model.images.keys().copied().collect();
        for slot in slots {
            let image = &self.model.images[&slot];
            let protected: Vec<String> = image
                .snaps
                .iter()
                .filter(|s| s.protected && !s.trashed)
                .map(|s| s.name.clone())
                .collect();
            for name in protected {
                match self.image(slot).and_then(|image| image.protect(&name)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Protected => {}
                    Err(error) => {
                        return violation(Rule::Model, format!("protecting: {}", error.sentence()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends a run whose medium is damaged.
    fn damaged(&mut self, candidates: Vec<Model>) -> Result<(), Violation> {
        self.machine.set_probe(None);
        self.machine.disarm();
        if self.settings.seed & 8 == 0 {
            self.machine.sync_all();
        }
        self.drop_all();
        self.machine.power_off();
        self.machine.power_on();
        let _ = self.machine.take_cut();
        self.outcome.crashes += 1;
        match self.store(0) {
            Ok(store) => damage::check(&store, &candidates, self.machine.places_damaged()),
            Err(_) => Ok(()),
        }
    }

    /// Closes everything. After that everything must be there.
    pub(crate) fn finish(&mut self) -> Result<(), Violation> {
        let _ = self.machine.take_cut();
        if self.settings.profile == Profile::Damage {
            let model = self.model.clone();
            if !model.images.is_empty() {
                self.damaged(vec![model])?;
            }
            return Ok(());
        }
        self.machine.disarm();
        self.expect_crashes(vec![self.model.clone()]);
        let slots: Vec<u8> = self.model.images.keys().copied().collect();
        for slot in slots {
            self.close(slot).or_else(|e| self.tolerate(&e, "closing"))?;
            self.model.images.get_mut(&slot).expect("a known image").flushed();
        }
        self.crash_failed()?;
        self.drop_all();
        self.settle(vec![self.model.clone()], true, true)?;
        let store = self.store(0).map_err(|e| Violation {
            rule: Rule::I1,
            message: format!("opening the store: {}", e.sentence()),
        })?;
        self.drop_all();
        observe::check(&store, true)
    }
}
