/// The checked options of one device: the user's, with the target's defaults. The broker puts them into the launch
/// message of each of the device's workers.
public struct DeviceOptions: Equatable, Sendable {
    public struct Entry: Equatable, Sendable {
        public let number: TargetOption.Number
        public let value: TargetOption.Value
    }

    /// Sorted by number, without duplicates.
    public private(set) var entries: [Entry] = []

    public init() {}

    /// The target's defaults.
    public init(initialOf target: TargetManifest) {
        for option in target.options { self[option.number] = option.initial }
    }

    public subscript(number: TargetOption.Number) -> TargetOption.Value? {
        get { entries.first { $0.number == number }?.value }
        set {
            entries.removeAll { $0.number == number }
            guard let newValue else { return }
            let place = entries.firstIndex { $0.number > number } ?? entries.count
            entries.insert(Entry(number: number, value: newValue), at: place)
        }
    }
}

// Options with the same meaning for every target.
extension DeviceOptions {
    /// Start of the device in the file, in bytes.
    public var offset: UInt64 {
        get { self[TargetOption.Common.offset]?.number ?? 0 }
        set { self[TargetOption.Common.offset] = newValue == 0 ? nil : .number(newValue) }
    }

    /// Size of the device in bytes; nil: the target decides.
    public var size: UInt64? {
        get { self[TargetOption.Common.size]?.number }
        set { self[TargetOption.Common.size] = newValue.map { .number($0) } }
    }

    /// Logical block size in bytes; nil: the target decides.
    public var blockSize: UInt32? {
        get { self[TargetOption.Common.blockSize]?.number.map { UInt32(clamping: $0) } }
        set { self[TargetOption.Common.blockSize] = newValue.map { .number(UInt64($0)) } }
    }

    /// Use the page cache.
    public var buffered: Bool {
        get { self[TargetOption.Common.buffered] != nil }
        set { self[TargetOption.Common.buffered] = newValue ? .number(1) : nil }
    }
}

extension TargetManifest {
    /// Whether the target has the option `size`.
    public var hasSize: Bool { option(TargetOption.Common.size) != nil }
    /// Whether the target has the option `block-size`.
    public var hasBlockSize: Bool { option(TargetOption.Common.blockSize) != nil }
}
