/// Builds a fixed-layout message, field after field, little-endian.
struct ByteWriter {
    private(set) var bytes: [UInt8] = []

    mutating func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
}

/// Reads a fixed-layout message, field after field. A read past the end makes `intact` false and yields zeros.
struct ByteReader {
    private let bytes: [UInt8]
    private var position = 0
    private(set) var intact = true

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    /// All was read, and nothing was missing.
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
