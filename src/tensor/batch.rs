//! Many requests' tensors as one batch: read in order on the way in, split on the way out.
//!
//! A [`Batch`] keeps each member's bytes where they are. A backend that needs one contiguous buffer has each byte copied
//! once, by [`Batch::gather`], into memory of its own choosing; one that does not reads the members. What is ragged,
//! padded or made for the whole batch ([`Forms`]) becomes what the model file sees here and nowhere else.

use std::sync::Arc;

use bytes::Bytes;

use super::forms::{Forms, InputForm};
use super::{DataType, Keep, Resident, Shape, Tensor, strings};
use crate::error::{Error, Kind, Result};

/// One request's part of a batch.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// The member's size in the batch dimension; 1 for models without one.
    pub rows: usize,
    /// The inputs in the order of the model's signature, checked against it. Those that the request left out are
    /// [`Tensor::absent`].
    pub inputs: Vec<Tensor>,
    /// The outputs that it wants left where they are computed.
    pub keep: Keep,
    /// Whether inputs lie in memory that the caller can still write.
    pub shared: bool,
}

impl Member {
    /// A member that reads all its outputs.
    pub fn new(rows: usize, inputs: Vec<Tensor>) -> Self {
        Self { rows, inputs, ..Self::default() }
    }
}

/// The members of one execution. All have the same inputs and types, and where the model's forms do not say otherwise the
/// same shapes but for the batch dimension.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The members in the order in which they were taken from the queue; never empty.
    pub members: Vec<Member>,
    /// How the model file's tensors differ from the members'; `None` if they do not.
    forms: Option<Arc<Forms>>,
    /// The inputs that were made for this batch.
    made: Vec<Tensor>,
}

/// Takes the bytes of a gathered input, one piece after the other.
pub trait Sink {
    /// These bytes.
    fn bytes(&mut self, bytes: &[u8]);
    /// `count` times this element.
    fn repeat(&mut self, element: &[u8], count: usize);
}

impl Sink for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn repeat(&mut self, element: &[u8], count: usize) {
        self.reserve(element.len() * count);
        (0..count).for_each(|_| self.extend_from_slice(element));
    }
}

impl Batch {
    /// Members whose tensors the model file sees as they are.
    pub fn new(members: Vec<Member>) -> Self {
        Self { members, forms: None, made: Vec::new() }
    }

    /// Members whose tensors the model file sees in these forms. What they change is brought to host memory.
    ///
    /// # Errors
    /// [`Kind::Backend`] if an input cannot be made for them, or fetched.
    pub fn formed(mut members: Vec<Member>, forms: Option<&Arc<Forms>>) -> Result<Self> {
        let Some(forms) = forms else { return Ok(Self::new(members)) };
        for input in members.iter_mut().flat_map(|member| forms.changed(&mut member.inputs)) {
            input.fetch()?;
        }
        let made = forms.made.iter().map(|input| input.make(&members, forms.batching)).collect::<Result<_>>()?;
        Ok(Self { members, forms: Some(forms.clone()), made })
    }

    /// Brings all inputs to host memory.
    ///
    /// # Errors
    /// [`Kind::Backend`] if a device fails.
    pub fn fetch(&mut self) -> Result<()> {
        self.members.iter_mut().flat_map(|member| &mut member.inputs).try_for_each(Tensor::fetch)
    }

    /// Whether the model file sees its tensors otherwise than the members hold them.
    pub fn is_formed(&self) -> bool {
        self.forms.is_some()
    }

    /// The sum of the members' rows.
    pub fn rows(&self) -> usize {
        self.members.iter().map(|member| member.rows).sum()
    }

    /// How many inputs the model file gets.
    pub fn inputs(&self) -> usize {
        self.own_inputs() + self.made.len()
    }

    /// How many inputs each member has.
    fn own_inputs(&self) -> usize {
        self.members.first().map_or(0, |member| member.inputs.len())
    }

    /// The input that was made for the batch, if `index` is one.
    fn made(&self, index: usize) -> Option<&Tensor> {
        self.made.get(index.checked_sub(self.own_inputs())?)
    }

    /// The form of a member's input; plain inputs have none to speak of.
    fn form(&self, index: usize) -> Option<(&Forms, &InputForm)> {
        let forms = self.forms.as_deref()?;
        match forms.input(index) {
            InputForm::Plain => None,
            form => Some((forms, form)),
        }
    }

    /// Whether the members left out input `index`, and the server does not make it.
    pub fn is_absent(&self, index: usize) -> bool {
        let made_up = |form: &InputForm| matches!(form, InputForm::Padded(padding) if padding.mask.is_some());
        self.made(index).is_none()
            && self.members[0].inputs[index].is_absent()
            && !self.form(index).is_some_and(|(_, form)| made_up(form))
    }

    /// Whether a member's input `index` is where a backend computed it.
    pub fn is_resident(&self, index: usize) -> bool {
        self.members.iter().any(|member| member.inputs.get(index).is_some_and(|input| input.resident.is_some()))
    }

    /// Whether a member wants output `index` left where it is computed, and can have it there.
    pub fn keeps(&self, index: usize) -> bool {
        self.members.iter().any(|member| member.keep.keeps(index))
            && self.forms.as_ref().is_none_or(|forms| !forms.cuts(index))
    }

    /// Whether a member keeps output `index` for long.
    pub fn lasts(&self, index: usize) -> bool {
        self.members.iter().any(|member| member.keep.lasts(index))
    }

    /// Whether a member reads the bytes of output `index`.
    pub fn reads(&self, index: usize) -> bool {
        self.members.iter().any(|member| member.keep.reads(index))
    }

    /// The element type of input `index`.
    pub fn dtype(&self, index: usize) -> DataType {
        if let Some(made) = self.made(index) {
            return made.dtype;
        }
        match self.form(index) {
            Some((_, InputForm::Padded(padding))) => padding.dtype,
            _ => self.members[0].inputs[index].dtype,
        }
    }

    /// The shape of input `index` over all members: the first dimension is the sum where there is more than one.
    pub fn shape(&self, index: usize) -> Shape {
        if let Some(made) = self.made(index) {
            return made.shape.clone();
        }
        let first = match self.form(index) {
            Some((_, InputForm::Ragged)) => {
                let elements = |member: &Member| member.inputs[index].shape.elements().unwrap_or(0);
                return Shape::new(&[self.members.iter().map(elements).sum::<usize>() as i64]);
            }
            Some((forms, InputForm::Padded(padding))) => {
                let own = forms.own_shape(&self.members[0].inputs, index, padding);
                own.map_or_else(|| self.members[0].inputs[index].shape.clone(), |own| padding.padded(&own))
            }
            _ => self.members[0].inputs[index].shape.clone(),
        };
        if self.members.len() == 1 {
            return first;
        }
        let padded_rows = matches!(self.form(index), Some((_, InputForm::Padded(_))));
        let rows = |member: &Member| match member.inputs[index].shape.first() {
            Some(rows) if !padded_rows => *rows,
            _ => member.rows as i64,
        };
        first.replace_rows(self.members.iter().map(rows).sum())
    }

    /// The bytes of a member's inputs as a model of these forms reads them.
    pub fn bytes_of(member: &Member, forms: Option<&Forms>) -> usize {
        match forms {
            Some(forms) => forms.bytes(member),
            None => member.inputs.iter().map(Tensor::bytes).sum(),
        }
    }

    /// The bytes of all members' inputs as the model file reads them.
    pub fn bytes(&self) -> usize {
        self.members.iter().map(|member| Self::bytes_of(member, self.forms.as_deref())).sum()
    }

    /// The byte length of input `index` over all members.
    fn byte_len(&self, index: usize) -> usize {
        match (self.made(index), &self.forms) {
            (Some(made), _) => made.data.len(),
            (None, Some(forms)) => self.members.iter().map(|member| forms.input_bytes(member, index)).sum(),
            (None, None) => self.members.iter().map(|member| member.inputs[index].data.len()).sum(),
        }
    }

    /// The bytes of input `index` without a copy, if they are together already and stay as they are; for an input in host
    /// memory, as [`Batch::gather`] and [`Batch::parts`].
    pub fn single(&self, index: usize) -> Option<&Bytes> {
        if let Some(made) = self.made(index) {
            return Some(&made.data);
        }
        // A kernel may rely on what it has read before: it counts, then fills; it checks an index, then uses it.
        let [only @ Member { shared: false, .. }] = self.members.as_slice() else { return None };
        let tensor = &only.inputs[index];
        match self.form(index) {
            Some((_, InputForm::Padded(padding))) => {
                let as_it_is = !tensor.is_absent() && padding.padded(&tensor.shape) == tensor.shape;
                as_it_is.then_some(&tensor.data)
            }
            _ => Some(&tensor.data),
        }
    }

    /// Writes input `index` over all members, as many bytes as its shape and type ask for.
    pub fn gather(&self, index: usize, sink: &mut impl Sink) {
        if let Some(made) = self.made(index) {
            return sink.bytes(&made.data);
        }
        match self.form(index) {
            Some((forms, InputForm::Padded(padding))) => {
                self.members.iter().for_each(|member| forms.fill(member, index, padding, sink));
            }
            _ => self.parts(index).for_each(|part| sink.bytes(part)),
        }
    }

    /// Input `index` over all members as one tensor, for a backend that needs no memory of its own.
    pub fn gathered(&self, index: usize) -> Tensor {
        let data = self.single(index).cloned().unwrap_or_else(|| {
            let mut data = Vec::with_capacity(self.byte_len(index));
            self.gather(index, &mut data);
            data.into()
        });
        Tensor::new(self.dtype(index), self.shape(index), data)
    }

    /// What the members hold of input `index`, one part for each in order.
    pub fn parts(&self, index: usize) -> impl Iterator<Item = &Bytes> {
        self.members.iter().map(move |member| &member.inputs[index].data)
    }

    /// Splits output `index` of the whole batch into each member's part: a view of it, where nothing is cut out.
    ///
    /// # Errors
    /// [`Kind::Backend`] if the outermost dimension is not the batch's rows, unless there is only one member, which gets
    /// the output as it is; and if the output does not fit its form.
    pub fn split(&self, index: usize, output: Tensor) -> Result<Vec<Tensor>> {
        let Some(forms) = self.forms.as_deref() else { return self.by_rows(index, output) };
        if output.is_absent() {
            return Ok(vec![output; self.members.len()]);
        }
        let parts = match self.scatter(forms, index, &output) {
            Some(parts) => parts?,
            None => self.by_rows(index, output)?,
        };
        let finish = |(member, part)| forms.finish(index, member, part).map_err(|why| Error::new(Kind::Backend, why));
        self.members.iter().zip(parts).map(finish).collect()
    }

    /// One member's outputs as its caller gets them; `outputs` belong to this member alone.
    ///
    /// # Errors
    /// As [`Batch::split`].
    pub fn own(&self, member: usize, outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let Some(forms) = &self.forms else { return Ok(outputs) };
        let member = self.members.get(member).ok_or_else(|| Error::internal("there is no such member"))?;
        let alone = Self { members: vec![member.clone()], forms: Some(forms.clone()), made: Vec::new() };
        let each = outputs.into_iter().enumerate().map(|(index, output)| {
            let mut parts = alone.split(index, output)?;
            Ok(parts.swap_remove(0))
        });
        each.collect()
    }

    fn by_rows(&self, index: usize, output: Tensor) -> Result<Vec<Tensor>> {
        if self.members.len() == 1 {
            return Ok(vec![output]);
        }
        let rows = self.rows();
        let misfit = || {
            let shape = &output.shape;
            Error::new(Kind::Backend, format!("output {index} of shape {shape} does not have the batch's {rows} rows"))
        };
        if output.shape.first().copied() != i64::try_from(rows).ok() {
            return Err(misfit());
        }
        let elements_per_row = Shape::new(&output.shape[1..]).elements().ok_or_else(misfit)?;
        let mut residents = self.resident_parts(index, &output, elements_per_row)?.into_iter();
        let mut rest = output.data.clone();
        let mut parts = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let resident = if member.keep.keeps(index) { residents.next() } else { None };
            let data = match output.is_on_host() {
                true => take(output.dtype, &mut rest, member.rows * elements_per_row).ok_or_else(misfit)?,
                false => Bytes::new(),
            };
            let data = if resident.is_some() && !member.keep.reads(index) { Bytes::new() } else { data };
            let shape = output.shape.replace_rows(member.rows as i64);
            parts.push(Tensor { dtype: output.dtype, shape, data, resident });
        }
        Ok(parts)
    }

    /// The rows of an output that is where it was computed, for each member that keeps it.
    fn resident_parts(&self, index: usize, output: &Tensor, elements: usize) -> Result<Vec<Arc<dyn Resident>>> {
        let Some(resident) = &output.resident else { return Ok(Vec::new()) };
        let mut first = 0;
        let ranges = self.members.iter().filter_map(|member| {
            let range = first..first + member.rows * elements;
            first = range.end;
            member.keep.keeps(index).then_some(range)
        });
        resident.parts(&ranges.collect::<Vec<_>>(), self.lasts(index))
    }

    /// Each member's part of an output that is split by the shapes of an input; `None` for other outputs.
    fn scatter(&self, forms: &Forms, index: usize, output: &Tensor) -> Option<Result<Vec<Tensor>>> {
        let mut rest = output.data.clone();
        let mut parts = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let part = forms.scattered(index, member)?.and_then(|shape| {
                let data = shape.elements().and_then(|elements| take(output.dtype, &mut rest, elements));
                let misfit = || format!("output {index} of shape {} ends before the requests' shapes do", output.shape);
                Ok(Tensor::new(output.dtype, shape, data.ok_or_else(misfit)?))
            });
            match part {
                Ok(part) => parts.push(part),
                Err(why) => return Some(Err(Error::new(Kind::Backend, why))),
            }
        }
        if rest.is_empty() {
            return Some(Ok(parts));
        }
        let why =
            format!("output {index} of shape {} has more elements than the requests' shapes ask for", output.shape);
        Some(Err(Error::new(Kind::Backend, why)))
    }
}

/// The next `elements` elements; `None` if fewer are left.
fn take(dtype: DataType, rest: &mut Bytes, elements: usize) -> Option<Bytes> {
    let length = match dtype.size() {
        Some(size) => elements.checked_mul(size)?,
        None => strings::prefix_len(rest, elements),
    };
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::{Buckets, Cut, Elsewhere, OutputForm, Padding};

    fn member(rows: usize, bytes: &[u8]) -> Member {
        let shape = Shape::new(&[rows as i64, (bytes.len() / rows) as i64]);
        Member::new(rows, vec![Tensor::new(DataType::Uint8, shape, Bytes::copy_from_slice(bytes))])
    }

    #[test]
    fn gather_then_split_gives_each_member_its_bytes() {
        let batch = Batch::new(vec![member(1, b"ab"), member(2, b"cdef")]);
        assert_eq!(&*batch.shape(0), &[3, 2]);
        let output = batch.gathered(0);
        assert_eq!(output.data, "abcdef");
        let parts = batch.split(0, output).expect("the rows match");
        assert_eq!(parts[0].data, "ab");
        assert_eq!(parts[1].data, "cdef");
        assert_eq!(&*parts[1].shape, &[2, 2]);
    }

    #[test]
    fn what_the_caller_can_still_write_is_gathered_even_alone() {
        let alone = Batch::new(vec![member(1, b"ab")]);
        assert_eq!(alone.gathered(0).data.as_ptr(), alone.members[0].inputs[0].data.as_ptr());
        let shared = Batch::new(vec![Member { shared: true, ..member(1, b"ab") }]);
        assert!(shared.single(0).is_none());
        let gathered = shared.gathered(0);
        assert_eq!(gathered.data, "ab");
        assert_ne!(gathered.data.as_ptr(), shared.members[0].inputs[0].data.as_ptr());
    }

    #[test]
    fn strings_split_by_their_framing() {
        let batch = Batch::new(vec![member(1, b"a"), member(2, b"bc")]);
        let elements: [&[u8]; 3] = [b"long one", b"", b"x"];
        let output = Tensor::new(DataType::Bytes, Shape::new(&[3, 1]), strings::encode(elements));
        let parts = batch.split(0, output).expect("the rows match");
        assert_eq!(parts[0].data, strings::encode([elements[0]]));
        assert_eq!(parts[1].data, strings::encode([elements[1], elements[2]]));
    }

    #[test]
    fn an_output_of_other_rows_does_not_split() {
        let batch = Batch::new(vec![member(1, b"a"), member(1, b"b")]);
        let output = Tensor::new(DataType::Uint8, Shape::new(&[1, 2]), Bytes::from_static(b"xy"));
        assert!(batch.split(0, output).is_err());
    }

    fn elsewhere(shape: &[i64], data: &'static [u8]) -> Tensor {
        let resident: Arc<dyn Resident> = Arc::new(Elsewhere(Bytes::from_static(data)));
        Tensor { resident: Some(resident), ..Tensor::new(DataType::Uint8, Shape::new(shape), Bytes::new()) }
    }

    #[test]
    fn who_keeps_an_output_gets_its_own_rows_of_it_and_others_get_bytes() {
        let mut batch = Batch::new(vec![member(1, b"a"), member(2, b"bc"), member(1, b"d")]);
        batch.members[1].keep = Keep::default().passing(0);
        batch.members[2].keep = Keep::default().lasting(0, true);
        assert!(batch.keeps(0) && batch.reads(0) && !batch.keeps(1));
        let output = Tensor { data: Bytes::from_static(b"uvwx"), ..elsewhere(&[4, 1], b"uvwx") };
        let parts = batch.split(0, output).expect("the rows match");
        let seen = parts.iter().map(|part| {
            let there = part.resident.as_ref().map(|resident| resident.to_host().expect("it is there").to_vec());
            (part.data.to_vec(), there, part.shape.to_vec())
        });
        let expected = [
            (b"u".to_vec(), None, vec![1, 1]),
            (Vec::new(), Some(b"vw".to_vec()), vec![2, 1]),
            (b"x".to_vec(), Some(b"x".to_vec()), vec![1, 1]),
        ];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
        assert_eq!((parts[1].bytes(), parts[1].is_on_host(), parts[2].is_on_host()), (2, false, true));
    }

    #[test]
    fn an_output_that_no_backend_could_keep_has_its_bytes() {
        let mut batch = Batch::new(vec![member(1, b"a"), member(1, b"b")]);
        batch.members.iter_mut().for_each(|member| member.keep = Keep::default().passing(0));
        assert!(!batch.reads(0));
        let output = Tensor::new(DataType::Uint8, Shape::new(&[2, 1]), Bytes::from_static(b"xy"));
        let parts = batch.split(0, output).expect("the rows match");
        assert_eq!(parts.iter().map(|part| &part.data[..]).collect::<Vec<_>>(), [b"x", b"y"]);
    }

    #[test]
    fn what_a_form_changes_is_fetched_and_the_rest_stays() {
        let members = vec![Member::new(1, vec![elsewhere(&[1, 2], b"ab"), elsewhere(&[1, 1], b"c")])];
        let cut = Cut::Unpadded { source: 0, free: vec![1] };
        let outputs = vec![OutputForm { cut, reshape: None }, OutputForm { cut: Cut::Rows, reshape: None }];
        let forms = Forms { batching: true, inputs: vec![padded(4)], made: Vec::new(), outputs };
        let mut batch = Batch::formed(members, Some(&Arc::new(forms))).expect("nothing is made");
        assert_eq!((batch.is_resident(0), batch.is_resident(1)), (false, true));
        assert_eq!(batch.gathered(0).data, b"ab\xee\xee"[..]);
        batch.members[0].keep = Keep::default().passing(0).passing(1).passing(2);
        assert_eq!([0, 1, 2].map(|output| batch.keeps(output)), [false, true, true]);
        assert_eq!(batch.bytes(), 5);
        batch.fetch().expect("it is there");
        assert_eq!(batch.gathered(1).data, b"c"[..]);
    }

    #[test]
    fn rows_of_more_elements_than_can_be_counted_do_not_split() {
        let batch = Batch::new(vec![member(1, b"a"), member(1, b"b")]);
        let output = Tensor::new(DataType::Uint8, Shape::new(&[2, i64::MAX, 4]), Bytes::new());
        assert!(batch.split(0, output).is_err());
    }

    /// Members of one row each with these elements.
    fn rows_of(rows: &[Vec<u8>]) -> Vec<Member> {
        let row = |row: &Vec<u8>| {
            let shape = Shape::new(&[1, row.len() as i64]);
            Member::new(1, vec![Tensor::new(DataType::Uint8, shape, row.clone().into())])
        };
        rows.iter().map(row).collect()
    }

    fn formed(rows: &[Vec<u8>], input: InputForm, cut: Cut) -> Batch {
        let outputs = vec![OutputForm { cut, reshape: None }];
        let forms = Forms { batching: true, inputs: vec![input], made: Vec::new(), outputs };
        Batch::formed(rows_of(rows), Some(&Arc::new(forms))).expect("nothing is made")
    }

    fn padded(step: i64) -> InputForm {
        InputForm::Padded(Padding {
            free: smallvec::smallvec![1],
            buckets: Buckets::Multiple(step),
            dtype: DataType::Uint8,
            value: smallvec::smallvec![0xee],
            mask: None,
        })
    }

    #[test]
    fn a_scattered_output_must_have_as_many_elements_as_the_requests() {
        let scatter = || Cut::Scatter { source: 0, dims: Shape::new(&[-1, -1]) };
        let batch = formed(&[vec![1, 2], vec![3]], InputForm::Ragged, scatter());
        let output = |data: &'static [u8]| {
            let (dtype, shape) = (DataType::Uint8, Shape::new(&[data.len() as i64]));
            batch.split(0, Tensor::new(dtype, shape, Bytes::from_static(data)))
        };
        assert!(output(b"abc").is_ok());
        let message = |data| output(data).expect_err("it does not fit").message().to_owned();
        assert_eq!(message(b"ab"), "output 0 of shape [2] ends before the requests' shapes do");
        assert_eq!(message(b"abcd"), "output 0 of shape [4] has more elements than the requests' shapes ask for");
    }

    #[test]
    fn an_output_without_the_padded_length_cannot_be_cut_back() {
        let batch = formed(&[vec![1, 2], vec![3]], padded(4), Cut::Unpadded { source: 0, free: vec![1] });
        let output = Tensor::new(DataType::Uint8, Shape::new(&[2, 2]), Bytes::from_static(b"abcd"));
        let error = batch.split(0, output).expect_err("the model pooled it");
        let expected = "output 0 of shape [1,2] does not have the length 4 of the padded input in dimension 1";
        assert_eq!(error.message(), expected);
    }

    #[test]
    fn only_a_batch_that_needs_no_padding_is_read_in_place() {
        let cut = || Cut::Rows;
        assert!(formed(&[vec![1; 4]], padded(4), cut()).single(0).is_some());
        assert!(formed(&[vec![1; 3]], padded(4), cut()).single(0).is_none());
        assert!(formed(&[vec![1; 3]], InputForm::Ragged, cut()).single(0).is_some());
    }

    proptest! {
        #[test]
        fn ragged_and_padded_batches_give_each_member_its_own_back(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..8),
            step in 1i64..9,
        ) {
            let flat = formed(&rows, InputForm::Ragged, Cut::Scatter { source: 0, dims: Shape::new(&[-1, -1]) });
            let gathered = flat.gathered(0);
            prop_assert_eq!(&gathered.data[..], rows.concat());
            prop_assert_eq!(&*gathered.shape, &[gathered.data.len() as i64]);
            let own: Vec<Tensor> = flat.members.iter().map(|member| member.inputs[0].clone()).collect();
            prop_assert_eq!(flat.split(0, gathered).expect("it fits"), own);
            // Only members of one bucket share a batch.
            let bucket = |row: &Vec<u8>| Buckets::Multiple(step).of(row.len() as i64);
            let first = bucket(&rows[0]);
            let rows: Vec<Vec<u8>> = rows.into_iter().filter(|row| bucket(row) == first).collect();
            let batch = formed(&rows, padded(step), Cut::Unpadded { source: 0, free: vec![1] });
            let gathered = batch.gathered(0);
            prop_assert_eq!(&*gathered.shape, &[rows.len() as i64, first]);
            prop_assert_eq!(gathered.data.len(), batch.bytes());
            for (row, filled) in rows.iter().zip(gathered.data.chunks(first as usize)) {
                prop_assert_eq!(&filled[..row.len()], &row[..]);
                prop_assert!(filled[row.len()..].iter().all(|byte| *byte == 0xee));
            }
            let own: Vec<Tensor> = batch.members.iter().map(|member| member.inputs[0].clone()).collect();
            prop_assert_eq!(batch.split(0, gathered).expect("it fits"), own);
        }
    }
}
