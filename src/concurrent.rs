//! Doing many things at once, but not too many.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// How many small requests are under way at once: enough to hide the way to the server and back.
pub(crate) const REQUESTS: usize = 32;

/// How many blobs are under way at once.
pub(crate) const TRANSFERS: usize = 16;

/// Does `work` on every item, on at most `limit` of them at once, and returns the results in the items' order.
///
/// All of it happens in the caller's task: nothing is spawned, nothing outlives the call.
///
/// # Errors
/// The first error that any of them gives; the others are then dropped where they are.
pub(crate) async fn each<I, T, E, F>(
    limit: usize,
    items: impl IntoIterator<Item = I>,
    mut work: impl FnMut(I) -> F,
) -> Result<Vec<T>, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut items = items.into_iter();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::with_capacity(limit);
    let mut results: Vec<Option<T>> = Vec::new();
    poll_fn(|context| {
        loop {
            while running.len() < limit.max(1)
                && let Some(item) = items.next()
            {
                running.push((results.len(), Box::pin(work(item))));
                results.push(None);
            }
            let before = running.len();
            let mut failed = None;
            running.retain_mut(|(index, future)| match future.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(Ok(result)) => {
                    if let Some(place) = results.get_mut(*index) {
                        *place = Some(result);
                    }
                    false
                }
                Poll::Ready(Err(error)) => {
                    failed.get_or_insert(error);
                    false
                }
            });
            if let Some(error) = failed {
                return Poll::Ready(Err(error));
            }
            if running.is_empty() && before == 0 {
                return Poll::Ready(Ok(()));
            }
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn results_come_in_the_order_of_the_items_and_never_more_than_the_limit_run() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let results = each(3, 0..20u32, |i| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                for _ in 0..(20 - i) {
                    tokio::task::yield_now().await;
                }
                running.set(running.get() - 1);
                Ok::<u32, ()>(i * 2)
            }
        });
        assert_eq!(results.await, Ok((0..20).map(|i| i * 2).collect()));
        assert_eq!(most.get(), 3);
    }

    #[tokio::test]
    async fn the_first_error_ends_it() {
        let begun = Cell::new(0);
        let result = each(2, 0.., |i| {
            begun.set(begun.get() + 1);
            async move { if i == 5 { Err(i) } else { Ok(()) } }
        });
        assert_eq!(result.await, Err(5));
        assert!(begun.get() <= 7);
    }

    #[tokio::test]
    async fn nothing_to_do_is_done_at_once() {
        assert_eq!(each(4, Vec::<()>::new(), |()| async { Ok::<(), ()>(()) }).await, Ok(Vec::new()));
    }
}
