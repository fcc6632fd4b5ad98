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

/// One figure of runs that were repeated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// Of an even number the lower of the two in the middle.
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
    pub(super) count: usize,
}

impl Spread {
    /// `None` where a run has no such figure, or there is no run.
    pub(super) fn of(figures: impl IntoIterator<Item = Option<f64>>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect::<Option<_>>()?;
        figures.sort_by(f64::total_cmp);
        let (lowest, highest) = (*figures.first()?, *figures.last()?);
        Some(Self { median: figures[(figures.len() - 1) / 2], lowest, highest, count: figures.len() })
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

    #[test]
    fn every_figure_has_a_median_of_its_own_unless_a_run_lacks_it() {
        let spread = Spread { median: 2.0, lowest: 1.0, highest: 4.0, count: 4 };
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0].map(Some)), Some(spread));
        assert_eq!(Spread::of([Some(1.0), None]), None);
        assert_eq!(Spread::of([]), None);
    }
}
