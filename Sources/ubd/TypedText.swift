import CShims
import Glibc

/// Words of the command line as Swift strings, without losing a byte. File names are bytes and need not be UTF-8
/// (path_resolution(7)); Swift would replace invalid bytes. In a word that is not UTF-8, each byte above 0x7F becomes a
/// code point from U+10FF80 on, at the end of the last private area. So does each such byte of a word that contains
/// such a code point.
enum TypedText {
    private static let base: UInt32 = 0x10FF00

    static func arguments() -> [String] {
        var count: Int32 = 0
        let words = ubd_arguments(&count)
        return (0..<Int(count)).compactMap { index in
            words?[index].map { word in
                text(UnsafeRawBufferPointer(start: word, count: strlen(word)))
            }
        }
    }

    static func text(_ bytes: some Collection<UInt8>) -> String {
        if let text = String(validating: bytes, as: UTF8.self),
            !text.unicodeScalars.contains(where: { byte(of: $0) != nil })
        {
            return text
        }
        var scalars = String.UnicodeScalarView()
        for byte in bytes {
            scalars.append(byte < 0x80 ? Unicode.Scalar(byte) : Unicode.Scalar(base + UInt32(byte)) ?? "?")
        }
        return String(scalars)
    }

    /// The byte that a code point stands for; nil for an ordinary code point.
    static func byte(of scalar: Unicode.Scalar) -> UInt8? {
        (base + 0x80...base + 0xFF).contains(scalar.value) ? UInt8(scalar.value - base) : nil
    }
}

extension String {
    /// The bytes that were typed, with a NUL at the end, for a system call.
    var systemPath: [CChar] {
        unicodeScalars.flatMap { scalar in
            TypedText.byte(of: scalar).map { [CChar(bitPattern: $0)] }
                ?? UTF8.encode(scalar)!.map(CChar.init(bitPattern:))
        } + [0]
    }

    /// The text with each byte that is not UTF-8 as "\\xFF".
    var readable: String {
        guard unicodeScalars.contains(where: { TypedText.byte(of: $0) != nil }) else { return self }
        return unicodeScalars.reduce(into: "") { result, scalar in
            guard let byte = TypedText.byte(of: scalar) else { return result.unicodeScalars.append(scalar) }
            result += "\\x" + String(byte, radix: 16, uppercase: true)
        }
    }
}
