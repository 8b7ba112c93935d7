extension LineCursor {
    /// What follows `@include`: a file name without a folder, so that a policy cannot reach out of its own.
    mutating func includeName() throws(PolicyError) -> (text: String, location: PolicyLocation) {
        let wanted = "a file name of this folder (letters, digits, '.', '-', '_'; no leading '.') after @include"
        skipBlanks()
        let before = self
        guard
            let name = word({ isWordByte($0) || $0 == UInt8(ascii: ".") || $0 == UInt8(ascii: "-") }),
            !name.text.hasPrefix("."), name.text.utf8.count <= 64
        else { throw before.expected(wanted) }
        try expectEnd(after: "@include \(name.text)")
        return name
    }
}

/// Includes go one level deep, so that two files at most must be read to know what a policy says.
func nestedInclude(_ location: PolicyLocation) -> PolicyError {
    PolicyError(location, "an included file includes another; expected rules only (includes go one level deep)")
}
