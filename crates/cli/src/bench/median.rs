//! Measurements that were repeated.

/// Runs of one measurement, in the order of their main figure. Never empty.
#[derive(Debug, Clone)]
pub(super) struct Runs<T> {
    runs: Vec<T>,
    figure: fn(&T) -> f64,
}

impl<T> Runs<T> {
    /// At least one run. `figure` is what runs are compared by.
    pub(super) fn new(mut runs: Vec<T>, figure: fn(&T) -> f64) -> Self {
        assert!(!runs.is_empty(), "nothing was measured");
        runs.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
        Self { runs, figure }
    }

    /// The run in the middle, of two the lower.
    pub(super) fn median(&self) -> &T {
        &self.runs[(self.runs.len() - 1) / 2]
    }

    /// Lowest and highest figure.
    pub(super) fn range(&self) -> (f64, f64) {
        let last = self.runs.len() - 1;
        ((self.figure)(&self.runs[0]), (self.figure)(&self.runs[last]))
    }

    pub(super) fn count(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_in_the_middle_counts() {
        let runs = Runs::new(vec![3.0, 1.0, 2.0], |figure| *figure);
        assert_eq!((*runs.median(), runs.range(), runs.count()), (2.0, (1.0, 3.0), 3));
        assert_eq!(*Runs::new(vec![2.0, 1.0], |figure| *figure).median(), 1.0);
    }
}
