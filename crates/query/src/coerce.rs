//! Floats and decimals compared as PostgreSQL compares them: as floats.
//!
//! Runs before DataFusion's own type coercion, which would turn the float into a decimal of 15
//! places: `f <> 1.75` would round, and fail on an infinity or a large value.

use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::expr::{Between, InList};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

/// The rule.
#[derive(Debug)]
pub(crate) struct CompareAsFloats;

impl AnalyzerRule for CompareAsFloats {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        let analyzed = plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let compared = expr.transform_up(|expr| compare_as_floats(expr, &schema))?;
                Ok(compared.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(analyzed.data)
    }

    fn name(&self) -> &'static str {
        "compare_as_floats"
    }
}

fn compares(operator: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(
        operator,
        Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom
    )
}

fn compare_as_floats(
    expr: Expr,
    schema: &datafusion::common::DFSchema,
) -> Result<Transformed<Expr>> {
    let mut operands: Vec<&Expr> = Vec::new();
    match &expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if compares(*op) => {
            operands.extend([left.as_ref(), right.as_ref()]);
        }
        Expr::Between(Between {
            expr, low, high, ..
        }) => {
            operands.extend([expr.as_ref(), low.as_ref(), high.as_ref()]);
        }
        Expr::InList(InList { expr, list, .. }) => {
            operands.push(expr.as_ref());
            operands.extend(list);
        }
        _ => return Ok(Transformed::no(expr)),
    }
    let mut types = Vec::with_capacity(operands.len());
    for operand in operands {
        types.push(operand.get_type(schema)?);
    }
    if !(types.iter().any(DataType::is_floating) && types.iter().any(DataType::is_decimal)) {
        return Ok(Transformed::no(expr));
    }
    // The operands are the expression's children, in the same order.
    let mut types = types.into_iter();
    expr.map_children(|operand| {
        let is_decimal = types.next().is_some_and(|data_type| data_type.is_decimal());
        Ok(if is_decimal {
            Transformed::yes(Expr::Cast(Cast::new(Box::new(operand), DataType::Float64)))
        } else {
            Transformed::no(operand)
        })
    })
}
