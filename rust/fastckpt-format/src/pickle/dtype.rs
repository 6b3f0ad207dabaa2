//! The dtypes of torch 2.6 to 2.15.

macro_rules! dtypes {
    ($($variant:ident $name:literal $itemsize:literal $storage:expr;)*) => {
        /// An element type, named as torch names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Dtype {
            $(#[doc = concat!("`torch.", $name, "`")] $variant,)*
        }

        impl Dtype {
            /// Every dtype, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The attribute of the torch module: `float32`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bytes of one element.
            #[must_use]
            pub fn itemsize(self) -> u64 {
                match self { $(Self::$variant => $itemsize,)* }
            }

            /// The legacy storage class of the dtype (`FloatStorage`); the dtypes since torch 2.0
            /// have none, their storages are untyped.
            #[must_use]
            pub fn storage_class(self) -> Option<&'static str> {
                match self { $(Self::$variant => $storage,)* }
            }

            /// The dtype that torch calls `name`.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    Float32 "float32" 4 Some("FloatStorage");
    Float64 "float64" 8 Some("DoubleStorage");
    Float16 "float16" 2 Some("HalfStorage");
    BFloat16 "bfloat16" 2 Some("BFloat16Storage");
    Int64 "int64" 8 Some("LongStorage");
    Int32 "int32" 4 Some("IntStorage");
    Int16 "int16" 2 Some("ShortStorage");
    Int8 "int8" 1 Some("CharStorage");
    UInt8 "uint8" 1 Some("ByteStorage");
    Bool "bool" 1 Some("BoolStorage");
    Complex64 "complex64" 8 Some("ComplexFloatStorage");
    Complex128 "complex128" 16 Some("ComplexDoubleStorage");
    QInt8 "qint8" 1 Some("QInt8Storage");
    QInt32 "qint32" 4 Some("QInt32Storage");
    QUInt8 "quint8" 1 Some("QUInt8Storage");
    QUInt4x2 "quint4x2" 1 Some("QUInt4x2Storage");
    QUInt2x4 "quint2x4" 1 Some("QUInt2x4Storage");
    UInt16 "uint16" 2 None;
    UInt32 "uint32" 4 None;
    UInt64 "uint64" 8 None;
    Complex32 "complex32" 4 None;
    BComplex32 "bcomplex32" 4 None;
    Float8E4M3Fn "float8_e4m3fn" 1 None;
    Float8E4M3Fnuz "float8_e4m3fnuz" 1 None;
    Float8E5M2 "float8_e5m2" 1 None;
    Float8E5M2Fnuz "float8_e5m2fnuz" 1 None;
    Float8E8M0Fnu "float8_e8m0fnu" 1 None;
    Float4E2M1FnX2 "float4_e2m1fn_x2" 1 None;
    Bits16 "bits16" 2 None;
    Bits8 "bits8" 1 None;
    Bits4x2 "bits4x2" 1 None;
    Bits2x4 "bits2x4" 1 None;
    Bits1x8 "bits1x8" 1 None;
    Int1 "int1" 1 None;
    Int2 "int2" 1 None;
    Int3 "int3" 1 None;
    Int4 "int4" 1 None;
    Int5 "int5" 1 None;
    Int6 "int6" 1 None;
    Int7 "int7" 1 None;
    UInt1 "uint1" 1 None;
    UInt2 "uint2" 1 None;
    UInt3 "uint3" 1 None;
    UInt4 "uint4" 1 None;
    UInt5 "uint5" 1 None;
    UInt6 "uint6" 1 None;
    UInt7 "uint7" 1 None;
}

impl Dtype {
    /// The dtype of a legacy storage class.
    #[must_use]
    pub fn from_storage_class(name: &str) -> Option<Self> {
        let of_class = |dtype: &&Self| dtype.storage_class() == Some(name);
        Self::ALL.iter().find(of_class).copied()
    }

    /// Whether a tensor of this dtype has a scale and a zero point, which only torch can rebuild.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        matches!(
            self,
            Self::QInt8 | Self::QInt32 | Self::QUInt8 | Self::QUInt4x2 | Self::QUInt2x4
        )
    }

    /// Whether torch knows no more of this dtype than its name (`torch.save` refuses its tensors).
    #[must_use]
    pub fn is_shell(self) -> bool {
        matches!(
            self,
            Self::Int1
                | Self::Int2
                | Self::Int3
                | Self::Int4
                | Self::Int5
                | Self::Int6
                | Self::Int7
                | Self::UInt1
                | Self::UInt2
                | Self::UInt3
                | Self::UInt4
                | Self::UInt5
                | Self::UInt6
                | Self::UInt7
        )
    }
}
