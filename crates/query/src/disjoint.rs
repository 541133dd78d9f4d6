//! `a IN (1) AND a IN (2)` where `a` is NULL: neither true nor false.
//!
//! Runs before DataFusion's simplifier, which up to 55.2 makes `false` of it, so that its negation would
//! be true of rows that have no value (apache/datafusion#24246, mended after 55.2).

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, LogicalPlan, Operator, lit};
use datafusion::optimizer::AnalyzerRule;

/// The rule.
#[derive(Debug)]
pub(crate) struct DisjointLists;

impl AnalyzerRule for DisjointLists {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        let analyzed = plan.transform_up_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let told = expr.transform_up(|expr| Ok(tell_null(expr)))?;
                Ok(told.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(analyzed.data)
    }

    fn name(&self) -> &'static str {
        "disjoint_lists"
    }
}

/// An expression that no value, or any, fulfils, as what it is also of NULL.
fn tell_null(expr: Expr) -> Transformed<Expr> {
    if !matches!(&expr, Expr::BinaryExpr(BinaryExpr { op, .. }) if is_logic(*op)) {
        return Transformed::no(expr);
    }
    let unknown = || lit(ScalarValue::Boolean(None));
    match OneOf::of(&expr) {
        Some(one_of) if one_of.values.is_empty() => {
            let operand = one_of.operand.clone();
            Transformed::yes(if one_of.negated {
                operand.is_not_null().or(unknown())
            } else {
                operand.is_null().and(unknown())
            })
        }
        _ => Transformed::no(expr),
    }
}

fn is_logic(operator: Operator) -> bool {
    matches!(operator, Operator::And | Operator::Or)
}

/// `operand IN (values)`, or `NOT IN`; no value is NULL.
struct OneOf<'a> {
    operand: &'a Expr,
    values: Vec<ScalarValue>,
    negated: bool,
}

impl<'a> OneOf<'a> {
    fn of(expr: &'a Expr) -> Option<Self> {
        match expr {
            Expr::InList(InList {
                expr,
                list,
                negated,
            }) => Some(Self {
                operand: expr,
                values: list.iter().map(constant).collect::<Option<_>>()?,
                negated: *negated,
            }),
            Expr::Not(inner) => Self::of(inner).map(|inner| Self {
                negated: !inner.negated,
                ..inner
            }),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_logic(*op) => {
                let (left, right) = (Self::of(left)?, Self::of(right)?);
                (left.operand == right.operand).then(|| left.with(*op, right))
            }
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: op @ (Operator::Eq | Operator::NotEq),
                right,
            }) => {
                let (operand, value) = match (constant(left), constant(right)) {
                    (None, Some(value)) => (left, value),
                    (Some(value), None) => (right, value),
                    _ => return None,
                };
                Some(Self {
                    operand,
                    values: vec![value],
                    negated: *op == Operator::NotEq,
                })
            }
            _ => None,
        }
    }

    /// Both, or either.
    fn with(self, operator: Operator, other: Self) -> Self {
        let is_and = operator == Operator::And;
        let (values, negated) = match (self.negated, other.negated) {
            (a, b) if a == b && a == is_and => (union(self.values, other.values), a),
            (a, b) if a == b => (common(self.values, &other.values), a),
            // What is left of the list that decides.
            (a, _) if a == is_and => (except(other.values, &self.values), !is_and),
            _ => (except(self.values, &other.values), !is_and),
        };
        Self {
            values,
            negated,
            ..self
        }
    }
}

fn union(mut a: Vec<ScalarValue>, b: Vec<ScalarValue>) -> Vec<ScalarValue> {
    a.extend(b);
    a
}

fn common(mut a: Vec<ScalarValue>, b: &[ScalarValue]) -> Vec<ScalarValue> {
    a.retain(|value| b.contains(value));
    a
}

fn except(mut a: Vec<ScalarValue>, b: &[ScalarValue]) -> Vec<ScalarValue> {
    a.retain(|value| !b.contains(value));
    a
}

fn constant(expr: &Expr) -> Option<ScalarValue> {
    let value = match expr {
        Expr::Literal(value, _) => value.clone(),
        Expr::Cast(Cast { expr, field }) => constant(expr)?.cast_to(field.data_type()).ok()?,
        _ => return None,
    };
    (!value.is_null()).then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use datafusion::logical_expr::col;

    use super::*;

    fn told(expr: Expr) -> String {
        tell_null(expr).data.to_string()
    }

    fn list(values: &[i64], negated: bool) -> Expr {
        let values = values.iter().map(|value| lit(*value)).collect();
        col("a").in_list(values, negated)
    }

    #[test]
    fn only_what_no_value_decides_is_told_apart() {
        let none = "a IS NULL AND Boolean(NULL)";
        let any = "a IS NOT NULL OR Boolean(NULL)";
        let one = || col("a").eq(lit(1_i64));
        for (expr, expected) in [
            (list(&[1, 2], false).and(list(&[3], false)), none),
            (list(&[1, 2], false).and(list(&[1, 2, 3], true)), none),
            (list(&[4], true).and(list(&[4], false)), none),
            (one().and(list(&[2], false)), none),
            (one().and(Expr::Not(Box::new(one()))), none),
            (list(&[1], true).or(list(&[2], true)), any),
            (list(&[1], false).or(list(&[1], true)), any),
            (list(&[1], true).or(one().or(list(&[2], false))), any),
        ] {
            assert_eq!(told(expr.clone()), expected, "{expr}");
        }
        for expr in [
            list(&[1, 2], false).and(list(&[2], false)),
            list(&[1], false).and(list(&[2], true)),
            list(&[1], true).and(list(&[2], true)),
            list(&[1], false).or(list(&[2], false)),
            list(&[1], false).and(col("b").eq(lit(2_i64))),
            one().and(col("a").in_list(vec![lit(ScalarValue::Int64(None))], false)),
        ] {
            assert_eq!(told(expr.clone()), expr.to_string());
        }
    }
}
