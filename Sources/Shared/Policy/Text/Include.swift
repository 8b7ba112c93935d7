extension LineCursor {
    /// The name after `@include`: a file name without folder, so that a policy can only include files beside it.
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

/// Includes are one level deep, so that reading two files is enough to know a policy.
func nestedInclude(_ location: PolicyLocation) -> PolicyError {
    PolicyError(location, "an included file includes another; expected rules only (includes go one level deep)")
}
