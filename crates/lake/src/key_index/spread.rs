//! Putting many items into buckets at once: counted, then each moved to its place.

/// Items in the order of their buckets; its memory is used again.
#[derive(Debug, Default)]
pub(super) struct Spread<T> {
    /// Where each bucket ends.
    ends: Vec<usize>,
    items: Vec<T>,
}

impl<T: Copy + Default> Spread<T> {
    /// Takes items, each into one of so many buckets.
    pub(super) fn fill(&mut self, items: &[T], buckets: usize, bucket: impl Fn(&T) -> usize) {
        self.ends.clear();
        self.ends.resize(buckets, 0);
        for item in items {
            if let Some(count) = self.ends.get_mut(bucket(item)) {
                *count += 1;
            }
        }
        let mut begin = 0;
        for end in &mut self.ends {
            begin += std::mem::replace(end, begin);
        }
        self.items.resize(items.len(), T::default());
        for item in items {
            if let Some(next) = self.ends.get_mut(bucket(item))
                && let Some(place) = self.items.get_mut(*next)
            {
                *place = *item;
                *next += 1;
            }
        }
    }

    /// Each bucket's items, in the order they came.
    pub(super) fn buckets(&mut self) -> impl Iterator<Item = &mut [T]> {
        let mut rest = self.items.as_mut_slice();
        let mut begin = 0;
        self.ends.iter().map(move |end| {
            let (bucket, after) = std::mem::take(&mut rest).split_at_mut(end - begin);
            (rest, begin) = (after, *end);
            bucket
        })
    }

    /// All items, bucket by bucket.
    pub(super) fn items(&self) -> &[T] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_is_in_its_bucket(
            fills in prop::collection::vec((prop::collection::vec(any::<u16>(), 0..200), 1_usize..20), 1..4),
        ) {
            let mut spread = Spread::default();
            for (items, buckets) in fills {
                spread.fill(&items, buckets, |item| usize::from(*item) % buckets);
                let found: Vec<Vec<u16>> = spread.buckets().map(|bucket| bucket.to_vec()).collect();
                let expected: Vec<Vec<u16>> = (0..buckets)
                    .map(|bucket| items.iter().copied().filter(|i| usize::from(*i) % buckets == bucket).collect())
                    .collect();
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(spread.items(), found.concat());
            }
        }
    }
}
