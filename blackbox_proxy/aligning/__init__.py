"""What two vocabularies say of each other, whatever the models: how the tokens of a base are written in local ones.

alignment: which local paths write an event, and their usual spelling
crossing: which local tokens begin with which token of the base, as tables
learned: what is known of the base at each place of a text
tree: paths of local tokens, in one pass
"""
