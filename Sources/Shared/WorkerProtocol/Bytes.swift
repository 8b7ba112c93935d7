/// Encodes a fixed-layout message field by field, little-endian.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
}

/// Decodes a fixed-layout message field by field. A read beyond the end yields 0 and clears `intact`.
struct ByteReader {
    private let bytes: [UInt8]
    private var position = 0
    private(set) var intact = true

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    /// Whether exactly all bytes were read.
    var isComplete: Bool { intact && position == bytes.count }

    mutating func get<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
        let size = MemoryLayout<T>.size
        guard intact, bytes.count - position >= size else {
            intact = false
            return 0
        }
        var value: T = 0
        for index in 0..<size { value |= T(truncatingIfNeeded: bytes[position + index]) << T(8 * index) }
        position += size
        return value
    }
}
